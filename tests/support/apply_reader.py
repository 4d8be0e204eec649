"""A stock SQLite reader in a process of its own, for as long as its standard input is open.

    apply_reader.py DATABASE short|long TOTAL PROGRESS

It checks the invariants of `apply_source` in one snapshot after the other; `long` snapshots stay for a while and are
checked again and again. PROGRESS is a file whose first 8 bytes count the checks. At the end one line of JSON: checks,
snapshots, violations.
"""

from __future__ import annotations

import json
import os
import select
import sqlite3
import sys
import time

LONG_SECONDS = 0.1
MAX_SECONDS = 900.0
INTEGRITY_EVERY = 7


class Reader:
    def __init__(self, path: str, total: int, progress: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        self.total = total
        self.progress_fd = os.open(progress, os.O_RDWR | os.O_CREAT)
        self.checks = self.snapshots = self.version = 0
        self.violations: list[str] = []

    def check(self) -> tuple[int, ...]:
        version, rows, size = self.db.execute("SELECT version, rows, bytes FROM meta").fetchone()
        if (total := self.db.execute("SELECT sum(balance) FROM accounts").fetchone()[0]) != self.total:
            self.violations.append(f"version {version}: balances sum up to {total}")
        found = self.db.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM filler").fetchone()
        if found != (rows, size):
            self.violations.append(f"version {version}: filler is {found}, not {rows, size}")
        if self.checks % INTEGRITY_EVERY == 0 and (bad := self.db.execute("PRAGMA integrity_check").fetchall()) != [
            ("ok",)
        ]:
            self.violations.append(f"version {version}: {bad[0][0][:200]}")
        self.count()
        return version, rows, size

    def count(self) -> None:
        self.checks += 1
        os.pwrite(self.progress_fd, self.checks.to_bytes(8, "little"), 0)

    def snapshot(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        try:
            self.db.execute("BEGIN")
            first = self.check()
            while time.monotonic() < end:
                if (again := self.check()) != first:
                    self.violations.append(f"a snapshot moved from {first} to {again}")
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            self.violations.append(f"{type(error).__name__}: {error}")
            self.count()
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            return
        if first[0] < self.version:
            self.violations.append(f"back in time from version {self.version} to {first[0]}")
        self.version = first[0]
        self.snapshots += 1


def main() -> None:
    path, mode, total, progress = sys.argv[1:]
    reader = Reader(path, int(total), progress)
    end = time.monotonic() + MAX_SECONDS
    while time.monotonic() < end and not select.select([sys.stdin], [], [], 0)[0]:
        reader.snapshot(LONG_SECONDS if mode == "long" else 0.0)
    found = {"checks": reader.checks, "snapshots": reader.snapshots, "violations": reader.violations[:20]}
    print(json.dumps(found), flush=True)


main()
