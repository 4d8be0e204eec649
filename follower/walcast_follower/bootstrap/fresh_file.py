"""A file that was put in place a moment ago, whole and verified: its checksums need not be computed again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from walcast.checksum import PageChecksums


@dataclass(frozen=True, slots=True)
class Fresh:
    """`checksums` are of the file's pages as long as `holds`: the same file, untouched since."""

    checksums: PageChecksums
    _seen: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path, checksums: PageChecksums) -> Fresh:
        """The file at `path`; a rename does not change what is looked at."""
        return cls(checksums, _seen(path.stat()))

    def holds(self, fd: int) -> bool:
        """Is the open file this one, as it was? (Of a WAL the caller must know that it is empty.)"""
        return _seen(os.fstat(fd)) == self._seen


def _seen(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
