"""What the load writes, and what is true of every state of it. Stock SQLite, nothing of walcast.

A transaction moves money between two accounts, adds an entry with its number and what the sums are after it, and sets
the sums. In every state the balances add up to nothing, the newest entry says what the sums say, and so does each
entry with the one before it.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ACCOUNTS = 200
BALLAST_BYTES = 4000
TAIL = 100
TOKEN = "drill-row-"

_SCHEMA = """
create table entries (n integer primary key, rows integer not null, total integer not null, node text, note text);
create table sums (id integer primary key, rows integer not null, total integer not null, newest integer not null);
create table accounts (id integer primary key, balance integer not null);
create table ballast (id integer primary key, data blob);
insert into sums values (1, 0, 0, 0);
"""


def create(path: Path, ballast_bytes: int, seed: int = 1) -> None:
    """An app's database in WAL mode, with so much in it beside what is to be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = random.Random(seed)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("begin")
        for statement in _SCHEMA.strip().split("\n"):
            db.execute(statement)
        db.executemany("insert into accounts values (?, 0)", [(number,) for number in range(ACCOUNTS)])
        for _ in range(ballast_bytes // BALLAST_BYTES):
            db.execute("insert into ballast (data) values (?)", (data.randbytes(BALLAST_BYTES),))
        db.execute("commit")


def connect(path: str | Path, synchronous: str = "FULL") -> sqlite3.Connection:
    """A connection that waits for no lock; for whichever thread has it."""
    db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    db.execute(f"pragma synchronous = {synchronous}")
    return db


def write(db: sqlite3.Connection, number: int, node: str) -> None:
    """The statements of one transaction, inside one."""
    amount = number * 7919 % 1009
    one, other = number % ACCOUNTS, (number * 31 + 7) % ACCOUNTS
    db.execute("update accounts set balance = balance - ? where id = ?", (amount, one))
    db.execute("update accounts set balance = balance + ? where id = ?", (amount, other))
    note = f"{TOKEN}{number:010d} {'.' * 40}"
    db.execute(
        "insert into entries select ?, rows + 1, total + ?, ?, ? from sums where id = 1", (number, amount, node, note)
    )
    db.execute("update sums set rows = rows + 1, total = total + ?, newest = ? where id = 1", (amount, number))


@dataclass(frozen=True, slots=True)
class Seen:
    """A state: how many entries, the number of the newest; `wrong` when it is half of a transaction."""

    rows: int
    newest: int
    wrong: str = ""


def look(db: sqlite3.Connection, between: Callable[[], object] = lambda: None) -> Seen:
    """One snapshot, checked; `between` two looks at the sums something may happen."""
    db.execute("begin")
    try:
        rows, total, newest = db.execute("select rows, total, newest from sums where id = 1").fetchone()
        (balances,) = db.execute("select sum(balance) from accounts").fetchone()
        tail = db.execute("select n, rows, total from entries order by n desc limit ?", (TAIL,)).fetchall()
        between()
        again = db.execute("select rows, total, newest from sums where id = 1").fetchone()
    finally:
        db.execute("rollback")
    wrong = ""
    if balances:
        wrong = f"at {rows} entries the balances add up to {balances}"
    elif (tail[0] if tail else (0, 0, 0)) != (newest, rows, total):
        wrong = f"the sums say {rows} entries up to {newest}, the newest entry says {tail[:1]}"
    elif any(a[1] != b[1] + 1 or a[2] - b[2] != a[0] * 7919 % 1009 for a, b in pairwise(tail)):
        wrong = f"at {rows} entries one of the last {TAIL} does not follow the one before"
    elif again != (rows, total, newest):
        wrong = f"a snapshot moved from {rows} entries to {again[0]}"
    return Seen(rows, newest, wrong)


def numbers(path: Path) -> set[int]:
    """Of all entries."""
    with closing(connect(path)) as db:
        return {number for (number,) in db.execute("select n from entries")}


def digest(path: Path) -> str:
    """SHA-256 of schema and rows, as stock SQLite reads them."""
    sums = hashlib.sha256()
    with closing(connect(path)) as db:
        db.execute("begin")
        schema: list[tuple[Any, ...]] = db.execute("select name, sql from sqlite_schema order by name").fetchall()
        sums.update(repr(schema).encode())
        for name, _ in schema:
            for row in db.execute(f'select * from "{name}" order by 1'):
                sums.update(repr(row).encode())
        db.execute("rollback")
    return sums.hexdigest()


def integrity(path: Path) -> str:
    """`ok`, or what is wrong."""
    with closing(connect(path)) as db:
        return "; ".join(row[0] for row in db.execute("pragma integrity_check(5)"))
