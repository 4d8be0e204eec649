"""A place of a database on a host, with a status file that says what a test wants, and no walcast process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from walcast.position import Position
from walcast.statedir import StateDir
from walcast.statusfile import State, Status, StatusWriter

HOUR_NS = 3600 * 10**9
BEAT_S = 1.0


class Place:
    """`database` and its status, said again and again as a process does that is alive."""

    def __init__(self, database: Path, writer: StatusWriter) -> None:
        self.database = database
        self.status = Status()
        self._writer = writer
        self._lock = threading.Lock()
        self._beating = True

    def show(self, state: State = State.STREAMING, txid: int = 100, **facts: Any) -> None:
        """That it is at this position, in term 2 unless told otherwise, and level. What has a time of its own, in
        `written_ns`, is said once."""
        now = time.time_ns()
        with self._lock:
            usual = Status(state, 2, Position(txid, 1), txid, level_ns=now, written_ns=now)
            self.status = replace(usual, **facts)
            self._beating = "written_ns" not in facts
            self._writer.write(self.status)

    def beat(self, end: threading.Event) -> None:
        """Until the end."""
        while not end.wait(BEAT_S):
            with self._lock:
                if self._beating:
                    self._writer.write(replace(self.status, written_ns=time.time_ns()))

    def leave(self) -> None:
        """Say no more, whatever becomes of the file."""
        with self._lock:
            self._beating = False


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Streaming, at TXID 100 of term 2."""
    folder.mkdir(parents=True)
    database = folder / "app.db"
    end = threading.Event()
    with closing(StateDir(database)) as state, closing(StatusWriter(state.path)) as writer:
        made = Place(database, writer)
        made.show()
        beating = threading.Thread(target=made.beat, args=[end])
        beating.start()
        try:
            yield made
        finally:
            end.set()
            beating.join()
