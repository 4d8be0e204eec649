"""The chained ledger: what an app writes, how a state of it is checked, and what was confirmed, kept elsewhere.

Row `seq` of `chain` has a hash over itself and the row before it, so a hash stands for the whole history up to it. The
rows of `stamps` have the newest `seq`, each on a page of its own: a state that mixes two commits shows.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

STAMPS = 4
FIRST = "0" * 16


class Broken(AssertionError):
    """A state that no commit has left."""


def chained(before: str, seq: int, body: bytes) -> str:
    """The hash of a row."""
    return hashlib.blake2b(before.encode() + seq.to_bytes(8, "big") + body, digest_size=8).hexdigest()


def create(path: Path, page_size: int) -> None:
    """An empty ledger, durable."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"""
        PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN;
        CREATE TABLE chain (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, body BLOB NOT NULL);
        CREATE TABLE stamps (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, filler BLOB NOT NULL);
        CREATE TABLE strangers (said TEXT);
    """)
    filler = bytes(page_size // 2)
    db.executemany("INSERT INTO stamps VALUES (?, 0, ?)", ((i, filler) for i in range(STAMPS)))
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def head(db: sqlite3.Connection) -> tuple[int, str]:
    """`seq` and hash of the newest row; Broken when the state there is none that a commit has left."""
    row = db.execute("SELECT seq, hash, body FROM chain ORDER BY seq DESC LIMIT 2").fetchall()
    stamps = {seq for (seq,) in db.execute("SELECT seq FROM stamps")}
    seq, its = (row[0][0], row[0][1]) if row else (0, FIRST)
    if stamps != {seq}:
        raise Broken(f"half a transaction: stamps {sorted(stamps)}, newest row {seq}")
    before = row[1][1] if len(row) > 1 else FIRST
    if row and chained(before, seq, row[0][2]) != its:
        raise Broken(f"row {seq} does not follow on the row before it")
    return seq, its


def rows(db: sqlite3.Connection) -> dict[int, str]:
    """All rows' hashes by `seq`, the whole chain checked, and all pages by SQLite."""
    db.execute("BEGIN")
    try:
        found = db.execute("PRAGMA integrity_check").fetchall()
        if found != [("ok",)]:
            raise Broken(f"integrity_check: {found[0][0]}")
        head(db)
        chain: dict[int, str] = {}
        before = FIRST
        for seq, its, body in db.execute("SELECT seq, hash, body FROM chain ORDER BY seq"):
            if seq != len(chain) + 1 or chained(before, seq, body) != its:
                raise Broken(f"the chain breaks at row {seq}")
            before = chain[seq] = its
    finally:
        db.execute("COMMIT")
    return chain


def image(db: sqlite3.Connection) -> bytes:
    """The whole database as a reader sees it now."""
    return db.serialize()


@dataclass
class Ledger:
    """What apps said in files that no cut reaches: rows committed, and rows that a barrier confirmed."""

    folder: Path
    committed: dict[int, str] = field(default_factory=dict)
    confirmed: dict[int, str] = field(default_factory=dict)
    confirmations: int = 0
    abandoned: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    _read: dict[Path, int] = field(default_factory=dict)

    def look(self) -> int:
        """Read on; how many rows were confirmed since the last look."""
        before = self.confirmations
        for path in sorted(self.folder.glob("*.ledger")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.decode().splitlines():
                self._take(path.stem, line)
        return self.confirmations - before

    def _take(self, app: str, line: str) -> None:
        _, kind, *rest = line.split()
        if kind == "commit":
            self.committed[int(rest[0])] = rest[1]
        elif kind == "confirmed":
            for word in rest:
                seq, _, its = word.partition(":")
                self.confirmed[int(seq)] = its
                self.confirmations += 1
        else:
            self.wrong.append(f"{app}: {line}")

    def missing(self, chain: dict[int, str]) -> list[int]:
        """Rows that were confirmed and are not in this history."""
        return [seq for seq, its in self.confirmed.items() if chain.get(seq) != its]

    def forget(self, seqs: list[int], chain: dict[int, str]) -> None:
        """These are accounted for elsewhere; what is not in this history is of one that was left."""
        for seq in seqs:
            del self.confirmed[seq]
        self.abandoned.update(its for seq, its in self.committed.items() if chain.get(seq) != its)
