"""A source database with a real writer, and its commits as transactions of pages, read from its WAL.

What a reader of any state must find: the balances' sum is `TOTAL`, and the row in `meta` counts the rows and bytes of
`filler`. Each commit raises `meta.version`.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from walcast.checksum import PageChecksums, page_checksum
from walcast.position import Position
from walcast.wal import WAL_HEADER_SIZE, frame_dtype
from walcast_follower.apply.applier import Applier

ACCOUNTS = 200
TOTAL = ACCOUNTS * 1000


@dataclass(frozen=True, slots=True)
class Transaction:
    """One commit of the source, its frames in the order of the WAL."""

    pgnos: list[int]
    pages: list[bytes]
    commit_pages: int
    position: Position

    def apply(self, applier: Applier, term: int = 1) -> None:
        applier.begin()
        applier.write_pages(self.pgnos, self.pages)
        applier.commit(term, self.position, self.commit_pages, 0)


class Source:
    """One stock writer; every method that writes makes one commit, which `transactions` has then."""

    def __init__(self, directory: Path, page_size: int = 4096, seed: int = 0) -> None:
        self.path = directory / "source.db"
        self.random = random.Random(seed)
        self.page_size = page_size
        self.transactions: list[Transaction] = []
        self.db = sqlite3.connect(self.path, isolation_level=None)
        # A small cache makes large transactions spill: pages that come twice, frames before their commit.
        self.db.executescript(f"""
            PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
            PRAGMA synchronous = OFF; PRAGMA cache_size = 20;
            CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
            CREATE TABLE filler (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
            CREATE TABLE meta (version INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL);
            INSERT INTO meta VALUES (0, 0, 0);
        """)
        self.db.executemany("INSERT INTO accounts VALUES (?, 1000)", ((i,) for i in range(ACCOUNTS)))
        self._checkpoint()
        data = self.path.read_bytes()
        self.checksums = PageChecksums.scan(page_size, iter([(1, data)]))
        self.first_position = Position(1, self.checksums.database)
        self._first = data

    def copy_to(self, path: Path) -> Path:
        """The database as it was before the first transaction: a replica at `first_position`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._first)
        return path

    def close(self) -> bytes:
        """Everything into the file, and the file's bytes."""
        self._checkpoint()
        self.db.close()
        return self.path.read_bytes()

    def _checkpoint(self) -> None:
        assert self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        self._frames = 0

    def _commit(self, *statements: tuple[str, tuple[object, ...]]) -> Transaction:
        self.db.execute("BEGIN")
        for sql, values in statements:
            self.db.execute(sql, values)
        self.db.execute(
            "UPDATE meta SET version = version + 1, rows = (SELECT count(*) FROM filler),"
            " bytes = (SELECT coalesce(sum(length(body)), 0) FROM filler)"
        )
        self.db.execute("COMMIT")
        return self._capture()

    def _capture(self) -> Transaction:
        dtype = frame_dtype(self.page_size)
        wal = Path(f"{self.path}-wal")
        with wal.open("rb") as file:
            file.seek(WAL_HEADER_SIZE + self._frames * dtype.itemsize)
            frames = np.frombuffer(file.read(), dtype)
        self._frames += len(frames)
        assert np.flatnonzero(frames["commit"]).tolist() == [len(frames) - 1]
        pgnos = frames["pgno"].tolist()
        pages = [page.tobytes() for page in frames["page"]]
        commit_pages = int(frames["commit"][-1])
        newest = {pgno: page_checksum(pgno, page) for pgno, page in zip(pgnos, pages, strict=True)}
        self.checksums.apply(
            np.array(list(newest), np.uint32), np.array(list(newest.values()), np.uint64), commit_pages
        )
        txid = len(self.transactions) + 2
        made = Transaction(pgnos, pages, commit_pages, Position(txid, self.checksums.database))
        self.transactions.append(made)
        if self._frames > 2000:
            self._checkpoint()
        return made

    # What a writer does

    def transfer(self) -> Transaction:
        a, b, amount = self.random.randrange(ACCOUNTS), self.random.randrange(ACCOUNTS), self.random.randrange(500)
        sql = "UPDATE accounts SET balance = balance + ? WHERE id = ?"
        return self._commit((sql, (-amount, a)), (sql, (amount, b)))

    def grow(self, rows: int = 4, size: int = 3000) -> Transaction:
        bodies = [os.urandom(self.random.randrange(1, size)) for _ in range(rows)]
        return self._commit(*[("INSERT INTO filler (body) VALUES (?)", (body,)) for body in bodies])

    def forget(self) -> Transaction:
        return self._commit(("DELETE FROM filler WHERE id % 3 = ?", (self.random.randrange(3),)))

    def change_schema(self) -> Transaction:
        name = f"extra_{len(self.transactions)}"
        tables = [row[0] for row in self.db.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'extra%'")]
        drop = [(f"DROP TABLE {old}", ()) for old in tables[2:]]
        return self._commit(*drop, (f"CREATE TABLE {name} (a, b)", ()), (f"INSERT INTO {name} VALUES (1, 2)", ()))

    def rewrite_all(self) -> Transaction:
        """Every balance changes, and all of the filler: many pages, some of them more than once."""
        return self._commit(
            ("UPDATE accounts SET balance = balance + CASE WHEN id % 2 THEN 7 ELSE -7 END", ()),
            ("UPDATE filler SET body = randomblob(length(body))", ()),
        )

    def vacuum(self) -> Transaction:
        self.db.execute("VACUUM")
        return self._capture()

    def step(self) -> Transaction:
        """A random one of these."""
        steps = (self.transfer, self.grow, self.forget, self.change_schema, self.rewrite_all, self.vacuum)
        return self.random.choices(steps, (60, 20, 6, 4, 5, 3))[0]()

    def run(self, count: int) -> list[Transaction]:
        return [self.step() for _ in range(count)]


def copy_database(path: Path, to: Path) -> Path:
    """Database and WAL as they lie there, without the wal-index: what power loss or recovery would find."""
    to.mkdir()
    for name in (path, Path(f"{path}-wal")):
        if name.exists():
            shutil.copyfile(name, to / name.name)
    return to / path.name
