"""The demo's processes on stock sqlite3, which know nothing of walcast: an app that writes, and a reader.

    python -m walcast_node.rehearsal.demo_app write COMMITS_PER_SECOND DATABASE …
    python -m walcast_node.rehearsal.demo_app read DATABASE

Both go on until their standard input closes, so they never outlive the demo, and say where they are in lines of JSON.

The app writes to the first database that lets it. Where it gets "database is locked" it tries the next, which is all
that it has to do for a failover. A line `gone DATABASE` on its standard input says that a host is lost, and this file
with it: the app answers once it is between two commits, and never writes there again.

A commit is one order: a row in `orders`, the money moved from one account to another, and the totals. The invariant, in
every state: the balances add up to what they began with, ids run from 1 without a gap, and the totals are those of the
rows. Every commit has a number of its own in its row, so that it can be told which of them are where.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

ACCOUNTS = 100
BALANCE = 1_000
FIRST_ORDERS = 2_000
SAY_EVERY_S = 0.1
SNAPSHOT_S = 0.01
PAUSE_S = 0.01
MOST_BROKEN = 5
LOCKED_S = 0.02
BUSY_MS = 5_000  # as stock Python has it
MOST_BEHIND_S = 0.1

NOT_NOW = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}

SCHEMA = """
create table accounts (id integer primary key, balance integer not null);
create table orders (id integer primary key, sender integer, receiver integer, amount integer, note text);
create index orders_of_receiver on orders (receiver);
create table totals (orders integer not null, amount integer not null);
insert into totals values (0, 0);
"""


@dataclass(slots=True)
class Written:
    """What the app says: how many commits it was told are done, which is the number of the last, the rows of `orders`
    where it writes, the longest commit; the database that it writes to, "" while none lets it, and since when, seconds
    of the monotonic clock that all processes share; which ones are gone."""

    commits: int = 0
    rows: int = 0
    longest_commit_ms: float = 0.0
    database: str = ""
    since_s: float = 0.0
    gone: list[str] = field(default_factory=list)


class Told:
    """What comes on standard input: which databases are gone, and its end, which means to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.news = threading.Event()
        self.gone: list[str] = []

    def listen(self) -> None:
        """Until the end. Not buffered: a buffer is locked by the thread that waits for it, also when all is over."""
        with open(0, "rb", buffering=0, closefd=False) as lines:
            for line in lines:
                self.gone.append(line.decode().strip().removeprefix("gone "))
                self.news.set()
        self.stop.set()
        self.news.set()


@dataclass(slots=True)
class Read:
    """What a reader says: checks of the invariant, the rows it sees, the longest statement, and what was broken."""

    checks: int = 0
    rows: int = 0
    longest_read_ms: float = 0.0
    broken: list[str] = field(default_factory=list)


def create(db: sqlite3.Connection) -> None:
    """Tables, accounts, and some orders to begin with, in one transaction."""
    db.execute("pragma journal_mode = wal")
    db.execute("begin")
    for statement in SCHEMA.strip().split("\n"):
        db.execute(statement)
    db.executemany("insert into accounts values (?, ?)", [(n, BALANCE) for n in range(ACCOUNTS)])
    for _ in range(FIRST_ORDERS):
        order(db, 0)
    db.execute("commit")


def order(db: sqlite3.Connection, number: int) -> None:
    """One order's statements."""
    sender, receiver = random.sample(range(ACCOUNTS), 2)
    amount = random.randint(1, 50)
    db.execute("update accounts set balance = balance - ? where id = ?", (amount, sender))
    db.execute("update accounts set balance = balance + ? where id = ?", (amount, receiver))
    note = f"commit {number:07}: {amount} from {sender} to {receiver}".ljust(80, ".")
    db.execute(
        "insert into orders (sender, receiver, amount, note) values (?, ?, ?, ?)", (sender, receiver, amount, note)
    )
    db.execute("update totals set orders = orders + 1, amount = amount + ?", (amount,))


class App:
    """One order a commit, at a steady rate, into the first database that lets it."""

    def __init__(self, paths: list[str], commits_per_s: float, told: Told) -> None:
        self._paths = paths
        self._every_s = 1 / commits_per_s
        self._told = told
        self._said = Written()
        self._open: dict[str, sqlite3.Connection] = {}

    def run(self) -> None:
        """Until told to stop. The first database is made, the others are those that follow it."""
        said, told = self._said, self._told
        try:
            create(self._connect(self._paths[0], "rwc"))
            said.rows = FIRST_ORDERS
            due_s = say_s = time.monotonic()
            while not told.stop.is_set():
                if self._hear():
                    say(said)
                moved = self._commit_somewhere()
                now_s = time.monotonic()
                if moved or now_s >= say_s:
                    say(said)
                    say_s = now_s + SAY_EVERY_S
                due_s = max(due_s + self._every_s, now_s - MOST_BEHIND_S)
                told.news.wait(max(0.0, due_s - now_s) if said.database else LOCKED_S)
        finally:
            for db in self._open.values():
                db.close()
        say(said)

    def _hear(self) -> bool:
        """Which hosts are gone by now? True when that is new; no commit is under way."""
        self._told.news.clear()
        new = [path for path in self._told.gone if path not in self._said.gone]
        self._said.gone += new
        if self._said.database in new:
            self._said.database = ""
        return bool(new)

    def _commit_somewhere(self) -> bool:
        """One commit, where it went last or else where it can; True when that is another database than before."""
        said = self._said
        others = [path for path in self._paths if path != said.database and path not in said.gone]
        for path in [said.database, *others] if said.database else others:
            if self._commit(path):
                moved, said.database = path != said.database, path
                if moved:
                    said.since_s = time.monotonic()
                    self._open[path].execute(f"pragma busy_timeout = {BUSY_MS}")
                return moved
        said.database = ""
        return False

    def _commit(self, path: str) -> bool:
        """False when this database cannot be written to now."""
        said, began = self._said, time.perf_counter()
        try:
            db = self._connect(path, "rw")
            db.execute("begin immediate")
            order(db, said.commits + 1)
            (rows,) = db.execute("select orders from totals").fetchone()
            db.execute("commit")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in NOT_NOW:
                raise
            if path in self._open:
                self._forgo(self._open[path])
            return False
        said.commits, said.rows = said.commits + 1, rows
        said.longest_commit_ms = max(said.longest_commit_ms, (time.perf_counter() - began) * 1000)
        return True

    def _connect(self, path: str, mode: str) -> sqlite3.Connection:
        """Opened once, and never made where there is none; one that was not yet written to waits for no lock."""
        if path not in self._open:
            address = f"{Path(path).absolute().as_uri()}?mode={mode}"
            self._open[path] = sqlite3.connect(address, uri=True, isolation_level=None, timeout=0)
            self._open[path].execute("pragma synchronous = normal")
        return self._open[path]

    def _forgo(self, db: sqlite3.Connection) -> None:
        if db.in_transaction:
            db.execute("rollback")
        db.execute("pragma busy_timeout = 0")


def read(path: str, stop: threading.Event) -> None:
    """A reader: one connection, opened once, that waits for no lock; snapshot after snapshot, each checked twice."""
    said = Read()
    next_say = time.monotonic()
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        while True:
            last = stop.is_set()  # once more after the word to stop: the end is checked, too
            try:
                check(db, said, stop)
            except sqlite3.Error as error:
                said.broken.append(f"a read failed: {error}")
                if db.in_transaction:
                    db.execute("rollback")
            if last or time.monotonic() >= next_say or said.broken:
                say(said)
                next_say = time.monotonic() + SAY_EVERY_S
            if last or len(said.broken) >= MOST_BROKEN:
                return
            stop.wait(PAUSE_S)


def check(db: sqlite3.Connection, said: Read, stop: threading.Event) -> None:
    """One snapshot: whole, not older than the one before, and the same after a while."""
    db.execute("begin")
    began = time.perf_counter()
    rows, newest, amount = db.execute("select count(*), max(id), sum(amount) from orders").fetchone()
    totals = db.execute("select orders, amount from totals").fetchall()
    (balances,) = db.execute("select sum(balance) from accounts").fetchone()
    said.longest_read_ms = max(said.longest_read_ms, (time.perf_counter() - began) * 1000)
    stop.wait(SNAPSHOT_S)
    again = db.execute("select orders, amount from totals").fetchall()
    db.execute("commit")
    if rows != newest or totals != [(rows, amount)]:
        said.broken.append(f"{rows} orders of {amount} up to id {newest}, but the totals are {totals}")
    if balances != ACCOUNTS * BALANCE:
        said.broken.append(f"at {rows} orders the balances add up to {balances}, not {ACCOUNTS * BALANCE}")
    if again != totals:
        said.broken.append(f"a snapshot moved from {totals} to {again}")
    if rows < said.rows:
        said.broken.append(f"back in time, from {said.rows} orders to {rows}")
    said.checks += 1
    said.rows = rows


def say(said: Written | Read) -> None:
    """One line of JSON."""
    print(json.dumps(asdict(said)), flush=True)


def main() -> None:
    """Run what the command line says until standard input closes."""
    told = Told()
    threading.Thread(target=told.listen, daemon=True).start()
    match sys.argv[1:]:
        case ["write", rate, *paths] if paths:
            App(paths, float(rate), told).run()
        case ["read", path]:
            read(path, told.stop)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
