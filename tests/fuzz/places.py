"""Where targets have their files: in memory where a machine offers that, as a disk would sync each of a million."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

_MEMORY = Path("/dev/shm")


def folder_in_memory() -> TemporaryDirectory[str]:
    """An empty one, gone with its context."""
    usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    return TemporaryDirectory(prefix="walcast-fuzz-", dir=_MEMORY if usable else None)
