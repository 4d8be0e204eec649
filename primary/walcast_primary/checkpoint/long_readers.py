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
from walcast.identifiers import printable
from walcast.locks import holder
from walcast.walindex import LOCK_READ0, READ_MARKS

log = logging.getLogger("walcast.primary")

LOOK_EVERY_S = 10.0
LONG_S = 60.0
LONG_WAL_BYTES = 64 << 20
REPLICATORS = frozenset({"litestream"})
MAX_SAID = 64
REPLICATES = "another program replicates this database too and makes its WAL grow: stop one of the two"
OPEN_FOR_LONG = "a read transaction has been open for a long time and makes the WAL grow: end it"


@dataclass(frozen=True, slots=True)
class Reader:
    """A process that reads at a frame of the WAL."""

    pid: int  # 0: of another PID namespace
    mark: int


class LongReaders:
    """Of one database, for its capture thread. Each process is spoken of once; `trouble`, which any thread may read,
    says who keeps the WAL from beginning anew now."""

    def __init__(self, name: str, files: DatabaseFiles) -> None:
        self.trouble: str | None = None
        self._name = name
        self._files = files
        self._since_s: dict[Reader, float] = {}
        self._said: set[int] = set()
        self._replicators: set[int] = set()  # one that has a mark now and then is there all the time
        self._looked_s = time.monotonic() - LOOK_EVERY_S

    def look_when_due(self, wal_bytes: int) -> None:
        """`wal_bytes` of the WAL are in use."""
        now = time.monotonic()
        if (wal_bytes or self.trouble) and now - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now
            self.look(wal_bytes, now)

    def look(self, wal_bytes: int, now_s: float) -> None:
        """Say who has to be known about, at the time `now_s`."""
        self._since_s = {reader: self._since_s.get(reader, now_s) for reader in self._readers()}
        self._replicators = {pid for pid in self._replicators if program_name(pid) in REPLICATORS}  # the others ended
        self._replicators |= {reader.pid for reader in self._since_s if program_name(reader.pid) in REPLICATORS}
        found = dict.fromkeys(self._replicators, REPLICATES)
        for reader, since_s in self._since_s.items():
            if now_s - since_s >= LONG_S and (wal_bytes >= LONG_WAL_BYTES or reader.pid in self._said):
                found.setdefault(reader.pid, OPEN_FOR_LONG)
        for pid, what in found.items():
            if pid not in self._said and len(self._said) < MAX_SAID:
                self._said.add(pid)
                facts = {"database": self._name, "pid": pid, "program": program_name(pid), "wal_bytes": wal_bytes}
                log.warning(what, extra=facts)
        said = [f"{what} ({program_name(pid)}, process {pid})" for pid, what in found.items()]
        self.trouble = "; ".join(said) or None

    def _readers(self) -> list[Reader]:
        marks = self._files.checkpoint_info().read_marks
        pids = {index: holder(self._files.shm_fd, LOCK_READ0 + index) for index in range(1, READ_MARKS)}
        return [Reader(pid, marks[index]) for index, pid in pids.items() if pid not in (None, os.getpid(), -1)]


def program_name(pid: int) -> str:
    """As the kernel has it; "unknown" for one that cannot be seen from here."""
    try:
        return printable(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()) or "unknown"
    except OSError:
        return "unknown"
