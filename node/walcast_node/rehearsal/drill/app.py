"""The drill's processes on stock sqlite3: the app that writes, and readers.

    python -m walcast_node.rehearsal.drill.app write RATE NAME=DATABASE NAME=DATABASE …
    python -m walcast_node.rehearsal.drill.app write-normal RATE NAME=DATABASE …         with PRAGMA synchronous=NORMAL
    python -m walcast_node.rehearsal.drill.app read DATABASE

Both end when their standard input does. The app is as dumb as apps are: it writes to one place until that says no, then
it tries the next. What it is told on standard input, a line each: `pause`, `go`, `down NAME` (that machine is gone),
`up NAME`. It says what it committed, and where and when, in lines of JSON; times are of the monotonic clock.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
import time
from contextlib import closing, suppress
from typing import Any

from walcast_node.rehearsal.drill import sql

SAY_EVERY_S = 0.02
READER_SAYS_EVERY_S = 0.1
READ_EVERY_S = 0.02
ROUND_PAUSE_S = 0.003
MOST_BROKEN = 5
BEHIND_S = 0.2


class Orders:
    """What standard input said."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.paused = False
        self.down: set[str] = set()
        self.heard = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            match line.split():
                case ["pause"]:
                    self.paused = True
                case ["go"]:
                    self.paused = False
                case ["down", name]:
                    self.down = self.down | {name}
                case ["up", name]:
                    self.down = self.down - {name}
            self.heard += 1
        self.stop.set()


class App:
    """Writes one row a transaction, at a steady rate, wherever it may."""

    def __init__(self, rate: float, places: dict[str, str], orders: Orders, synchronous: str = "FULL") -> None:
        self.rate, self.places, self.orders, self.synchronous = rate, places, orders, synchronous
        self.names = list(places)
        self.at = 0
        self.number = 1
        self._open: dict[str, sqlite3.Connection] = {}
        self._done: list[tuple[int, str, float, float]] = []
        self._unknown: list[int] = []
        self._refused: dict[str, list[Any]] = {}
        self._said_s = 0.0

    def run(self) -> None:
        """Until told to stop."""
        orders, due_s = self.orders, time.monotonic()
        while not orders.stop.is_set():
            now_s = time.monotonic()
            if now_s - self._said_s >= SAY_EVERY_S:
                self._say(now_s)
            heard = orders.heard
            if orders.paused:
                self._say(now_s, paused=True, heard=heard)
                orders.stop.wait(SAY_EVERY_S)
                due_s = time.monotonic()
                continue
            if now_s < due_s:
                orders.stop.wait(min(due_s - now_s, SAY_EVERY_S))
                continue
            if self._anywhere():
                due_s = max(due_s + 1 / self.rate, time.monotonic() - BEHIND_S)
            else:
                orders.stop.wait(ROUND_PAUSE_S)
                due_s = time.monotonic()
        self._say(time.monotonic())

    def _anywhere(self) -> bool:
        """Try the place where it went well last, then the others in turn."""
        for step in range(len(self.names)):
            at = (self.at + step) % len(self.names)
            name = self.names[at]
            if name in self.orders.down:
                if name in self._open:
                    self._open.pop(name).close()
                continue
            if self._try(name):
                self.at = at
                return True
        return False

    def _try(self, name: str) -> bool:
        began_s = time.monotonic()
        try:
            db = self._open.get(name) or self._open.setdefault(name, sql.connect(self.places[name], self.synchronous))
            db.execute("begin immediate")
        except sqlite3.Error as error:
            self._no(name, began_s, str(error))
            return False
        number = self.number
        try:
            sql.write(db, number, name)
            db.execute("commit")
        except sqlite3.Error as error:
            self.number += 1
            self._unknown.append(number)
            self._no(name, began_s, str(error))
            with suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("rollback")
            return False
        self.number += 1
        self._done.append((number, name, began_s, time.monotonic()))
        return True

    def _no(self, name: str, at_s: float, text: str) -> None:
        streak = self._refused.get(name)
        if streak is None or streak[3] != text:
            self._refused[name] = [at_s, at_s, 1, text]
        else:
            streak[1], streak[2] = at_s, streak[2] + 1

    def _say(self, now_s: float, *, paused: bool = False, heard: int = 0) -> None:
        self._said_s = now_s
        said = {"done": self._done, "unknown": self._unknown, "refused": self._refused}
        print(json.dumps(said | {"paused": paused, "heard": heard, "next": self.number}), flush=True)
        self._done, self._unknown, self._refused = [], [], {}


def read(path: str, orders: Orders) -> None:
    """One connection, opened once: every state that it sees is checked, and is not older than the one before."""
    said: dict[str, Any] = {"checks": 0, "rows": 0, "newest": 0, "broken": [], "back": []}
    said_s = 0.0
    with closing(sql.connect(path)) as db:
        while True:
            last = orders.stop.is_set()
            try:
                seen = sql.look(db, lambda: orders.stop.wait(READ_EVERY_S / 4))
            except sqlite3.Error as error:
                said["broken"].append(f"a read failed: {error}")
                with suppress(sqlite3.Error):
                    if db.in_transaction:
                        db.execute("rollback")
            else:
                said["checks"] += 1
                if seen.wrong:
                    said["broken"].append(seen.wrong)
                if seen.rows < said["rows"]:
                    said["back"].append([time.monotonic(), said["rows"], seen.rows, said["newest"]])
                said["rows"], said["newest"] = seen.rows, seen.newest
            now_s = time.monotonic()
            if last or now_s - said_s >= READER_SAYS_EVERY_S:
                print(json.dumps(said), flush=True)
                said_s = now_s
            if last or len(said["broken"]) >= MOST_BROKEN:
                print(json.dumps(said), flush=True)
                return
            orders.stop.wait(READ_EVERY_S)


def main() -> None:
    """Run what the command line says."""
    orders = Orders()
    match sys.argv[1:]:
        case ["write", rate, *places]:
            App(float(rate), dict(place.split("=", 1) for place in places), orders).run()
        case ["write-normal", rate, *places]:
            App(float(rate), dict(place.split("=", 1) for place in places), orders, "NORMAL").run()
        case ["read", path]:
            read(path, orders)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
