"""The capture's oracle, deliberately dumb: put the pages of the log's entries into a file, one after the other."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.writers import checkpointed, seen_from_outside

from walcast.position import Position
from walcast_follower.apply.page_one import check_page_one
from walcast_follower.subscribe.page_growth import Growth
from walcast_primary.database import Database
from walcast_primary.transaction_log.segment import Entry
from walcast_primary.transaction_log.transaction_log import TransactionLog

PENDING_BYTE = 0x40000000


def entries(log: TransactionLog, after: Position) -> Iterator[Entry]:
    """Every entry after a position, each of which must continue the one before."""
    at = after
    while at.txid < log.position.txid:
        entry = log.after(at.txid)
        assert entry is not None, f"no entry after {at}"
        assert entry.min_txid == at.txid + 1
        assert entry.pre_checksum == at.checksum
        assert entry.position.txid >= entry.min_txid
        at = entry.position
        yield entry
    assert at == log.position


def replay(base: bytes, log: TransactionLog, after: Position) -> bytes:
    """The file that the log says the database is. It grows by pages that the log has, as followers demand."""
    file = bytearray(base)
    for entry in entries(log, after):
        header = entry.header()
        size = header.page_size
        growth = Growth(size, len(file) // size)
        file.extend(bytes(max(0, header.commit_pages * size - len(file))))
        last = 0
        for page in entry.pages():
            assert last < page.pgno <= header.commit_pages, "pages ascend and lie inside the database"
            assert page.pgno != PENDING_BYTE // size + 1
            growth.add(page.pgno)
            if page.pgno == 1:
                check_page_one(page.data, size, header.commit_pages)
            file[(page.pgno - 1) * size : page.pgno * size] = page.data
            last = page.pgno
        growth.finish(header.commit_pages)
        del file[header.commit_pages * size :]
    return bytes(file)


def same(one: bytes, other: bytes, page_size: int) -> None:
    """Equal, or a short list of what is not."""
    if one != other:
        count = max(len(one), len(other)) // page_size
        pages = [i + 1 for i in range(count) if one[i * page_size :][:page_size] != other[i * page_size :][:page_size]]
        raise AssertionError(f"{len(one)} and {len(other)} bytes, pages that differ: {len(pages)}, {pages[:10]}")


class Served:
    """A database under capture in this process, and what the oracle needs to know of it."""

    def __init__(self, path: Path, **bounds: Any) -> None:
        self.path = path
        self.bounds = bounds
        self.stopped = False
        self.database = Database(path, path.stem, **bounds)
        self.database.start()
        self.base_position = self.database.loop.barrier().result(30.0).position
        self.base = seen_from_outside(path)

    @property
    def position(self) -> Position:
        """A position that covers all commits made before."""
        return self.database.loop.barrier().result(60.0).position

    @property
    def commits(self) -> int:
        """How many transactions the log has since the beginning."""
        return self.position.txid - self.base_position.txid

    def stop(self) -> None:
        """Stop capturing, once."""
        if not self.stopped:
            self.stopped = True
            self.database.stop()

    def restart(self, before_start: Callable[[Database], Any] = lambda database: None) -> Any:
        """Stop, unless that was done, and start again. Answers what `before_start` makes of the opened database."""
        self.stop()
        self.database = Database(self.path, self.path.stem, **self.bounds)
        self.stopped = False
        made = before_start(self.database)
        self.database.start()
        return made

    def verify(self) -> None:
        """Stop; the log, replayed, is the database byte for byte, and the database is whole."""
        assert self.database.loop.failure is None, self.database.loop.failure
        position = self.position
        self.stop()
        assert self.database.log.position == position
        data = checkpointed(self.path)
        same(replay(self.base, self.database.log, self.base_position), data, self.database.page_size)
        connection = sqlite3.connect(self.path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


@contextmanager
def served(path: Path, **bounds: Any) -> Iterator[Served]:
    """Capture of `path`, whose WAL is empty now; `verify` ends it with the comparison."""
    made = Served(path, **bounds)
    try:
        yield made
    finally:
        made.stop()
