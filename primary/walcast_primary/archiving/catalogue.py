"""What an archive holds, as this process knows it: listed once, then kept by what it writes and deletes itself.

What others put there meanwhile is not in it until the next listing; nothing here is ever taken for the reason to
delete what it does not name.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from walcast.archive import LEVELS, ArchiveFile


class Catalogue:
    """The files of every level. Used by the archiver's thread and by its upkeep."""

    def __init__(self, files: Iterable[ArchiveFile] = ()) -> None:
        self._lock = threading.Lock()
        self._levels: dict[int, dict[str, ArchiveFile]] = {level: {} for level in LEVELS}
        for file in files:
            self._levels[file.level][file.key] = file

    def add(self, file: ArchiveFile) -> None:
        """Written."""
        with self._lock:
            self._levels[file.level][file.key] = file

    def remove(self, files: Iterable[ArchiveFile]) -> None:
        """Deleted."""
        with self._lock:
            for file in files:
                self._levels[file.level].pop(file.key, None)

    def correct(self, known: Iterable[ArchiveFile], listed: Iterable[ArchiveFile]) -> None:
        """The archive was listed again; `known` is what was in here before that. What came or went here meanwhile stays
        as it is."""
        listed = list(listed)
        there = {file.key for file in listed}
        self.remove(file for file in known if file.key not in there)
        with self._lock:
            for file in listed:
                self._levels[file.level].setdefault(file.key, file)

    def level(self, level: int) -> list[ArchiveFile]:
        """A level's files, in no order."""
        with self._lock:
            return list(self._levels[level].values())

    def all(self) -> list[ArchiveFile]:
        """Every file."""
        with self._lock:
            return [file for level in self._levels.values() for file in level.values()]

    def end_txid(self, level: int) -> int:
        """The highest TXID in a level; 0 when it is empty."""
        with self._lock:
            return max((file.max_txid for file in self._levels[level].values()), default=0)

    def newest(self, level: int) -> ArchiveFile | None:
        """The file of a level that ends last."""
        with self._lock:
            return max(self._levels[level].values(), key=lambda file: file.max_txid, default=None)
