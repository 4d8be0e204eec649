"""A file system that stops: every write to it, and every sync, waits until it goes on. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE_BYTES = 64 << 20


class Disk:
    """An ext4 on a loop mount at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = False

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "-f", str(self.path)], check=True)
        self.frozen = True

    def go_on(self) -> None:
        if self.frozen:
            self.frozen = False
            subprocess.run(["fsfreeze", "-u", str(self.path)], check=True)


@contextmanager
def disk(path: Path, image: Path) -> Iterator[Disk]:
    """Mounted at `path`, with `image` behind it; skips the test where that cannot be."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.ext4", "mount", "fsfreeze"))):
        pytest.skip("a loop mount needs root, mkfs.ext4 and fsfreeze")
    path.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(path)], check=False).returncode:
        pytest.skip("no loop mounts here")
    made = Disk(path)
    try:
        yield made
    finally:
        made.go_on()
        subprocess.run(["umount", "-l", str(path)], check=True)
