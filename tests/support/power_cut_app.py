"""An app with the chained ledger: stock SQLite, writes whenever it is let, has rows confirmed; until SIGTERM.

    power_cut_app.py DATABASE LEDGER JSON       {"synchronous": …, "autocheckpoint": N, "seed": …, "pause_s": …}

LEDGER gets `SECONDS commit SEQ HASH` after each commit, and `SECONDS confirmed SEQ:HASH …` when `barrier(followers=1)`
returned, in the term that the rows were committed in (see `failover_app`). SIGUSR1 asks for a checkpoint that restarts
the WAL.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

from support.power_cut_ledger import chained, head

from walcast.errors import WalcastError
from walcast.primary import Primary

BARRIER_S = 2.0
LOCKED_S = 0.01
MAX_SECONDS = 3600.0
CHECKPOINTS = ("PASSIVE", "RESTART", "TRUNCATE")


class App:
    def __init__(self, database: str, ledger: str, options: str) -> None:
        told = json.loads(options)
        self.rng = random.Random(told["seed"])
        self.pause_s = told["pause_s"]
        self.db = sqlite3.connect(database, isolation_level=None, timeout=0.05)
        self.db.execute(f"PRAGMA synchronous = {told['synchronous']}")
        self.db.execute(f"PRAGMA wal_autocheckpoint = {told['autocheckpoint']}")
        self.primary = Primary(Path(database))
        self.ledger = Path(ledger).open("a", buffering=1)  # noqa: SIM115 - closed in run
        self.term = -1
        self.ending = self.checkpoint_wanted = False

    def say(self, *words: object) -> None:
        print(f"{time.monotonic():.4f}", *words, file=self.ledger)

    def write(self) -> tuple[int, str] | None:
        """One transaction; None when this node is not the one to write on."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            seq, before = head(self.db)
            body = self.rng.randbytes(self.rng.choice((10, 100, 300, 3000)))
            its = chained(before, seq + 1, body)
            self.db.execute("INSERT INTO chain VALUES (?, ?, ?)", (seq + 1, its, body))
            self.db.execute("UPDATE stamps SET seq = ?", (seq + 1,))
            self.db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if "locked" not in str(error):
                time.sleep(LOCKED_S)  # the disk is gone, and so is this process in a moment
            return None
        self.say("commit", seq + 1, its)
        return seq + 1, its

    def confirm(self, rows: list[tuple[int, str]]) -> None:
        try:
            token = self.primary.barrier(followers=1, timeout=BARRIER_S)
        except WalcastError:
            self.term = -1
            return
        if token.term == self.term:
            self.say("confirmed", *(f"{seq}:{its}" for seq, its in rows))
        self.term = token.term

    def checkpoint(self, mode: str) -> None:
        try:
            self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.OperationalError:
            pass

    def run(self) -> None:
        end = time.monotonic() + MAX_SECONDS
        while time.monotonic() < end and not self.ending:
            rows = []
            for _ in range(self.rng.randrange(1, 6)):
                row = self.write()
                if row is None:
                    time.sleep(LOCKED_S)
                    break
                rows.append(row)
            if self.checkpoint_wanted or self.rng.random() < 0.02:
                self.checkpoint("RESTART" if self.checkpoint_wanted else self.rng.choice(CHECKPOINTS))
                self.checkpoint_wanted = False
            if rows and self.rng.random() < 0.7:
                self.confirm(rows)
            time.sleep(self.pause_s)
        self.db.close()
        self.ledger.close()

    def end(self, *_: object) -> None:
        self.ending = True

    def want_checkpoint(self, *_: object) -> None:
        self.checkpoint_wanted = True


if __name__ == "__main__":
    app = App(*sys.argv[1:])
    signal.signal(signal.SIGTERM, app.end)
    signal.signal(signal.SIGUSR1, app.want_checkpoint)
    app.run()
