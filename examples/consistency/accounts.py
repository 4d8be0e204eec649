"""Money that moves between accounts; their sum is always the same, so half a transaction would show."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ACCOUNTS = 400
SUM = 100 * ACCOUNTS
SCHEMA = "CREATE TABLE account (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL, about TEXT NOT NULL)"

_rng = random.Random(1)


def open_accounts(app: sqlite3.Connection) -> None:
    """A hundred cents in each; there may be some already."""
    app.execute("BEGIN IMMEDIATE")
    app.execute("DROP TABLE IF EXISTS account")
    app.execute(SCHEMA)
    app.executemany("INSERT INTO account VALUES (?, 100, ?)", ((number, "." * 200) for number in range(ACCOUNTS)))
    app.execute("COMMIT")


def transfer(app: sqlite3.Connection) -> None:
    """A cent from an account of the first half to one of the second, in one transaction."""
    app.execute("BEGIN IMMEDIATE")
    app.execute("UPDATE account SET cents = cents - 1 WHERE id = ?", (_rng.randrange(ACCOUNTS // 2),))
    app.execute("UPDATE account SET cents = cents + 1 WHERE id = ?", (ACCOUNTS // 2 + _rng.randrange(ACCOUNTS // 2),))
    app.execute("COMMIT")


def connect(database: Path) -> sqlite3.Connection:
    """As an app that writes."""
    app = sqlite3.connect(database, timeout=5.0, isolation_level=None)
    app.execute("PRAGMA synchronous = NORMAL")
    return app


@contextmanager
def transfers(database: Path) -> Iterator[None]:
    """An app that transfers as fast as it can."""
    over = threading.Event()

    def write() -> None:
        with closing(connect(database)) as app:
            while not over.wait(0.001):
                transfer(app)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
