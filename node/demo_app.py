"""The demo's processes on stock sqlite3, which know nothing of walcast: an app that writes, a reader; how to start one.

    python -m node.demo_app write DATABASE COMMITS_PER_SECOND
    python -m node.demo_app read DATABASE

Both go on until their standard input closes, so they never outlive the demo, and say where they are in lines of JSON.
Also here: what stock sqlite3 says of a file when all is over.

A commit is one order: a row in `orders`, the money moved from one account to another, and the totals. The invariant, in
every state: the balances add up to what they began with, ids run from 1 without a gap, and the totals are those of the
rows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ACCOUNTS = 100
BALANCE = 1_000
FIRST_ORDERS = 2_000
SAY_EVERY_S = 0.1
SNAPSHOT_S = 0.01
PAUSE_S = 0.01
MOST_BROKEN = 5
LOG_LINES = 6
PIECE_BYTES = 1 << 20

SCHEMA = """
create table accounts (id integer primary key, balance integer not null);
create table orders (id integer primary key, sender integer, receiver integer, amount integer, note text);
create index orders_of_receiver on orders (receiver);
create table totals (orders integer not null, amount integer not null);
insert into totals values (0, 0);
"""


@dataclass(slots=True)
class Written:
    """What the app says: its commits since it started, the rows of `orders` in all, the longest commit."""

    commits: int = 0
    rows: int = 0
    longest_commit_ms: float = 0.0


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
        order(db)
    db.execute("commit")


def order(db: sqlite3.Connection) -> None:
    """One order's statements."""
    sender, receiver = random.sample(range(ACCOUNTS), 2)
    amount = random.randint(1, 50)
    db.execute("update accounts set balance = balance - ? where id = ?", (amount, sender))
    db.execute("update accounts set balance = balance + ? where id = ?", (amount, receiver))
    note = f"order of {amount} from {sender} to {receiver}".ljust(80, ".")
    db.execute(
        "insert into orders (sender, receiver, amount, note) values (?, ?, ?, ?)", (sender, receiver, amount, note)
    )
    db.execute("update totals set orders = orders + 1, amount = amount + ?", (amount,))


def write(path: str, commits_per_s: float, stop: threading.Event) -> None:
    """The app: one order a commit, at a steady rate."""
    said = Written(rows=FIRST_ORDERS)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        create(db)
        db.execute("pragma synchronous = normal")
        began = time.monotonic()
        next_say = began
        while not stop.is_set():
            if time.monotonic() >= next_say:
                say(said)
                next_say += SAY_EVERY_S
            commit_began = time.perf_counter()
            db.execute("begin immediate")
            order(db)
            db.execute("commit")
            said.longest_commit_ms = max(said.longest_commit_ms, (time.perf_counter() - commit_began) * 1000)
            said.commits += 1
            said.rows += 1
            stop.wait(max(0.0, began + said.commits / commits_per_s - time.monotonic()))
    say(said)


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


class Child:
    """A process of the demo. `said` is the newest line of JSON it printed; its log goes to a file."""

    def __init__(self, name: str, folder: Path, *arguments: str) -> None:
        self.name = name
        self.said: dict[str, Any] = {}
        self.log_path = folder / f"{name}.log"
        # A session of its own: Ctrl-C is for the demo, which ends its children. No flags from WALCAST_<FLAG>.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WALCAST_")}
        command = [sys.executable, "-P", "-m", *arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None  # a pipe, see above
        for line in self.process.stdout:
            self.said = json.loads(line)

    def ask_to_stop(self) -> None:
        """SIGTERM for walcast, the end of standard input for the others."""
        assert self.process.stdin is not None  # a pipe, see above
        if self.process.poll() is None and "role" in self.said:
            self.process.send_signal(signal.SIGTERM)
        self.process.stdin.close()

    def wait(self, timeout_s: float) -> int:
        """Its exit code, when all that it printed is read; TimeoutExpired."""
        code = self.process.wait(timeout_s)
        self._listener.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def exit_code(self, timeout_s: float) -> int | None:
        """None while it still runs after so long."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.wait(5)

    def last_lines(self) -> list[str]:
        """The end of its log."""
        return self.log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]


def checkpoint(database: Path) -> None:
    """Everything into the database file; sqlite3.OperationalError when somebody still uses it."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        busy, *_ = db.execute("pragma wal_checkpoint(truncate)").fetchone()
        if busy:
            raise sqlite3.OperationalError(f"{database}: the checkpoint was not complete")


def integrity(database: Path) -> str:
    """What integrity_check says, `ok` or what is wrong."""
    with closing(sqlite3.connect(database)) as db:
        return "; ".join(row[0] for row in db.execute("pragma integrity_check(5)"))


def first_difference(one: Path, other: Path) -> int | None:
    """The offset of the first byte that differs, or where one of the files ends; None when they are equal."""
    at = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(PIECE_BYTES), right.read(PIECE_BYTES)
            if a != b:
                return at + next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            if not a:
                return None
            at += len(a)


def main() -> None:
    """Run what the command line says until standard input closes."""
    stop = threading.Event()

    def watch() -> None:
        os.read(0, 1)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    match sys.argv[1:]:
        case ["write", path, rate]:
            write(path, float(rate), stop)
        case ["read", path]:
            read(path, stop)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
