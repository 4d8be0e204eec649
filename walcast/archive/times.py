"""When the transactions of an archive were: read from the files' own headers, with few requests.

A listing's times are the store's; those of S3 are the uploads'. An archive may have tens of thousands of files, so not
every header is read. **Within a level, times ascend with TXIDs**: whoever writes an archive sees to it (a file's time
is that of its last transaction, and no transaction is stamped before the one it follows). So each level is bisected,
the levels at the same time: some 15 requests for 20,000 files. With few files every header is read, nothing assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby, islice

from walcast.archive.damage import DamagedFile
from walcast.archive.files import ArchiveFile
from walcast.archive.reading import read_header, read_headers
from walcast.ltx import Header
from walcast.store.base import ObjectMissing, Store

FEW_FILES = 32


def timed(store: Store, files: Sequence[ArchiveFile], timestamp_ms: int) -> list[ArchiveFile]:
    """The files with times that tell which are after `timestamp_ms` and which are not.

    A file's time is its own where its header was read, and otherwise one on the same side of `timestamp_ms`. Files
    that were removed since they were listed are left out. One with a damaged header counts as not after the time
    unless its neighbours say so: then a restore finds the damage, and never silently ends before the file.
    """
    ordered = sorted(files, key=lambda file: (file.level, file.max_txid, file.min_txid))
    levels = [_Level(list(of_level), timestamp_ms) for _, of_level in groupby(ordered, key=lambda file: file.level)]
    if len(files) <= FEW_FILES:
        answers = iter(list(read_headers(store, ordered)))
        for level in levels:
            level.read_all(answers)
    elif levels:
        with ThreadPoolExecutor(len(levels), thread_name_prefix="walcast-times") as pool:
            list(pool.map(lambda level: level.bisect(store), levels))
    return [file for level in levels for file in level.files()]


class _Level:
    """The files of one level, by TXID: those not after the time, those after it, those whose header is damaged."""

    def __init__(self, files: list[ArchiveFile], timestamp_ms: int) -> None:
        self._asked_ms = timestamp_ms
        self._files = files
        self._before: list[ArchiveFile] = []
        self._after: list[ArchiveFile] = []
        self._damaged: list[ArchiveFile] = []

    def read_all(self, answers: Iterator[Header | DamagedFile | ObjectMissing]) -> None:
        """`answers` has the headers of this level's files next."""
        for file, answer in zip(self._files, islice(answers, len(self._files)), strict=True):
            if isinstance(answer, Header):
                self._put(replace(file, timestamp_ms=answer.timestamp_ms))
            elif isinstance(answer, DamagedFile):
                self._damaged.append(file)

    def bisect(self, store: Store) -> None:
        """Read as few headers as tell where the time lies."""
        files = self._files
        low, high = 0, len(files)  # those before `low` are not after the time, those from `high` on are
        while low < high:
            middle = (low + high) // 2
            try:
                header = read_header(store, files[middle])
            except ObjectMissing:
                del files[middle]
                high -= 1
                continue
            except DamagedFile:
                self._damaged.append(files.pop(middle))
                high -= 1
                continue
            files[middle] = replace(files[middle], timestamp_ms=header.timestamp_ms)
            low, high = (middle + 1, high) if header.timestamp_ms <= self._asked_ms else (low, middle)
        for at, file in enumerate(files):
            inside, asked_ms = at < low, self._asked_ms
            guess_ms = min(file.timestamp_ms, asked_ms) if inside else max(file.timestamp_ms, asked_ms + 1)
            self._put(replace(file, timestamp_ms=guess_ms))

    def files(self) -> list[ArchiveFile]:
        """All of them, each with a time on its side."""
        oldest = min((file.max_txid for file in self._after), default=None)
        for file in self._damaged:
            after = oldest is not None and file.max_txid >= oldest
            self._put(replace(file, timestamp_ms=self._asked_ms + after))
        return self._before + self._after

    def _put(self, file: ArchiveFile) -> None:
        (self._before if file.timestamp_ms <= self._asked_ms else self._after).append(file)
