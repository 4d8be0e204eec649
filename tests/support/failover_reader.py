"""A stock reader of one node of a replica set, with one connection for all its life; until its standard input ends.

    failover_reader.py DATABASE WRONG STEPS APP …

What should not have happened goes to WRONG, a line each. STEPS gets a line of JSON for each step back: a snapshot that
does not have the newest row of an APP that the snapshot before it had; with what the status file said at both. Says at
the end how many snapshots it saw.
"""

from __future__ import annotations

import json
import select
import sqlite3
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from walcast.errors import Unavailable
from walcast.statusfile import read_status

MAX_SECONDS = 3600.0
INTEGRITY_EVERY = 50
NEWEST = "SELECT n, body FROM rows WHERE app = ? ORDER BY n DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class Seen:
    """A snapshot: when, by both clocks, the newest row of each app with its body, and what the status file said right
    before."""

    at_s: float
    wall_s: float
    rows: dict[str, tuple[int, str]]
    state: str
    term: int
    txid: int


@dataclass
class Reader:
    """What one reader has seen."""

    path: Path
    apps: list[str]
    newest: Seen = field(default_factory=lambda: Seen(time.monotonic(), time.time(), {}, "", 0, 0))
    steps: list[str] = field(default_factory=list)

    def status(self) -> tuple[str, int, int]:
        try:
            status = read_status(self.path)
        except Unavailable:
            return "", 0, 0
        return str(status.state), status.term, status.position.txid

    def step(self, db: sqlite3.Connection, status: tuple[str, int, int]) -> None:
        """Inside a transaction: are the rows still there that were the newest before?"""
        rows: dict[str, tuple[int, str]] = {}
        gone: dict[str, tuple[int, str]] = {}
        for app in self.apps:
            newest = db.execute(NEWEST, (app,)).fetchone()
            if newest is not None:
                rows[app] = newest[0], newest[1].hex()
            before = self.newest.rows.get(app)
            if before is None or before == rows.get(app):
                continue
            kept = db.execute("SELECT body FROM rows WHERE app = ? AND n = ?", (app, before[0])).fetchone()
            if kept is None or kept[0].hex() != before[1]:
                gone[app] = before
        now = Seen(time.monotonic(), time.time(), rows, *status)
        if gone:
            self.steps.append(json.dumps({"gone": gone, "before": asdict(self.newest), "after": asdict(now)}))
        self.newest = now


def look(db: sqlite3.Connection, whole: bool, reader: Reader) -> str | None:
    """What is wrong with the state that is there now."""
    status = reader.status()
    db.execute("BEGIN")
    try:
        reader.step(db, status)
        stamps = {stamp for (stamp,) in db.execute("SELECT stamp FROM stamps")}
        if len(stamps) != 1:
            return f"half a transaction: {stamps}"
        if whole:
            found = db.execute("PRAGMA integrity_check").fetchall()
            if found != [("ok",)]:
                return str(found[0][0])[:300]
        again = {stamp for (stamp,) in db.execute("SELECT stamp FROM stamps")}
        return None if again == stamps else f"a snapshot moved from {stamps} to {again}"
    finally:
        db.execute("COMMIT")


def main() -> None:
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5.0)
    print("ready", flush=True)
    end = time.monotonic() + MAX_SECONDS
    snapshots = 0
    reader = Reader(Path(sys.argv[1]), sys.argv[4:])
    with Path(sys.argv[2]).open("a", buffering=1) as wrong, Path(sys.argv[3]).open("a", buffering=1) as steps:
        while time.monotonic() < end and not select.select([sys.stdin], [], [], 0.01)[0]:
            try:
                found = look(db, snapshots % INTEGRITY_EVERY == 0, reader)
            except sqlite3.Error as error:
                found = f"{type(error).__name__}: {error}"
            if found:
                print(f"{time.monotonic():.4f} snapshot {snapshots}: {found}", file=wrong)
            while reader.steps:
                print(reader.steps.pop(0), file=steps)
            snapshots += 1
    db.close()
    print(json.dumps({"snapshots": snapshots}), flush=True)


main()
