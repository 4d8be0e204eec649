"""Processes that have something to do with a folder, however they were started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def processes_in(folder: Path) -> list[str]:
    """Those that name it in their command line or environment, have a file of it open, or work in it: why, each."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        signs = (sign for sign in _signs(process) if str(folder) in sign)
        if sign := next(signs, None):
            found.append(f"{process.name}: {sign}")
    return found


def _signs(process: Path) -> Iterator[str]:
    """Nothing more once it has ended."""
    with suppress(OSError):
        for name in ("cmdline", "environ"):
            yield (process / name).read_bytes().replace(b"\0", b" ").decode(errors="replace")
        yield str((process / "cwd").readlink())
        for fd in (process / "fd").iterdir():
            with suppress(FileNotFoundError):
                yield str(fd.readlink())
