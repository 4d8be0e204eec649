"""The database of the end-to-end tests, and what one state of it is.

Every transaction raises `state.commit_seq`, so that each state has a number; transfers conserve the sum of the
balances; `spread` has a row on every page or so, so that half a transaction shows.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
from pathlib import Path
from typing import NamedTuple

ACCOUNTS = 60
BALANCE = 1000
TOTAL = ACCOUNTS * BALANCE
SPREAD_ROWS = 30


class Observation(NamedTuple):
    """One state: the number of the commit that made it, the sum of all balances, and a hash of everything in it."""

    seq: int
    total: int
    digest: str


def create(path: Path, *, page_size: int = 4096, seed: int = 0, journal_mode: str = "WAL") -> None:
    """The database at commit 0."""
    rng = random.Random(seed)
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"""
        PRAGMA page_size = {page_size}; PRAGMA journal_mode = {journal_mode}; BEGIN;
        CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
        CREATE TABLE spread (id INTEGER PRIMARY KEY, stamp INTEGER NOT NULL, body BLOB NOT NULL);
        CREATE TABLE filler (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
        CREATE TABLE state (commit_seq INTEGER NOT NULL);
        INSERT INTO state VALUES (0);
    """)
    db.executemany("INSERT INTO accounts VALUES (?, ?)", ((i, BALANCE) for i in range(ACCOUNTS)))
    db.executemany("INSERT INTO spread VALUES (?, 0, ?)", ((i, rng.randbytes(2500)) for i in range(SPREAD_ROWS)))
    db.execute("COMMIT")
    db.close()


def observe(db: sqlite3.Connection) -> Observation:
    """The state that an open transaction shows."""
    seq = db.execute("SELECT commit_seq FROM state").fetchone()[0]
    accounts = db.execute("SELECT id, balance FROM accounts ORDER BY id").fetchall()
    digest = hashlib.blake2b(repr((seq, accounts)).encode(), digest_size=8)
    for row in db.execute("SELECT id, stamp, body FROM spread ORDER BY id"):
        digest.update(b"%d %d " % row[:2] + row[2])
    filler = db.execute("SELECT count(*), coalesce(sum(id), 0), coalesce(sum(length(body)), 0) FROM filler").fetchone()
    tables = db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
    digest.update(repr((filler, tables)).encode())
    return Observation(seq, sum(balance for _, balance in accounts), digest.hexdigest())


def observe_at(path: Path) -> Observation:
    """The newest state, by a connection of its own; not where another library of this process has the database open."""
    db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    try:
        db.execute("BEGIN")
        return observe(db)
    finally:
        db.close()
