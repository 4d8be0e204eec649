"""Readers of other processes that keep the WAL from beginning anew: a second replicator, or a transaction left open.

Litestream holds a read transaction for as long as it runs, as the primary does. Each of the two keeps the other one's
checkpoints from completing, so the WAL grows. Which process has a read mark is asked of the kernel, which names one of
those that share it; the anchor moves on with each commit, so a reader that stays soon has a mark without it.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from walcast.dbfiles import DatabaseFiles
from walcast.locks import holder
from walcast.walindex import LOCK_READ0, READ_MARKS

log = logging.getLogger("walcast.primary")

LOOK_EVERY_S = 10.0
LONG_S = 60.0
LONG_WAL_BYTES = 64 << 20
REPLICATORS = frozenset({"litestream"})
MAX_SAID = 64


@dataclass(frozen=True, slots=True)
class Reader:
    """A process that reads at a frame of the WAL."""

    pid: int  # 0: of another PID namespace
    mark: int


class LongReaders:
    """Of one database, for its capture thread. Each process is spoken of once."""

    def __init__(self, name: str, files: DatabaseFiles) -> None:
        self._name = name
        self._files = files
        self._since_s: dict[Reader, float] = {}
        self._said: set[int] = set()
        self._looked_s = time.monotonic() - LOOK_EVERY_S

    def look_when_due(self, wal_bytes: int) -> None:
        """`wal_bytes` of the WAL are in use."""
        now = time.monotonic()
        if wal_bytes and now - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now
            self.look(wal_bytes, now)

    def look(self, wal_bytes: int, now_s: float) -> None:
        """Say who has to be known about, at the time `now_s`."""
        self._since_s = {reader: self._since_s.get(reader, now_s) for reader in self._readers()}
        for reader, since_s in self._since_s.items():
            if reader.pid in self._said or len(self._said) >= MAX_SAID:
                continue
            program = program_name(reader.pid)
            facts = {"database": self._name, "pid": reader.pid, "program": program, "wal_bytes": wal_bytes}
            if program in REPLICATORS:
                self._said.add(reader.pid)
                log.warning(
                    "another program replicates this database, too, and makes its WAL grow: stop one", extra=facts
                )
            elif now_s - since_s >= LONG_S and wal_bytes >= LONG_WAL_BYTES:
                self._said.add(reader.pid)
                facts |= {"seconds": round(now_s - since_s)}
                log.warning("a read transaction that is open for long makes the WAL grow: end it", extra=facts)

    def _readers(self) -> list[Reader]:
        marks = self._files.checkpoint_info().read_marks
        pids = {index: holder(self._files.shm_fd, LOCK_READ0 + index) for index in range(1, READ_MARKS)}
        return [Reader(pid, marks[index]) for index, pid in pids.items() if pid not in (None, os.getpid(), -1)]


def program_name(pid: int) -> str:
    """As the kernel has it; "unknown" for one that cannot be seen from here."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
