"""A place of a database on a host, with a status file that says what a test wants, and no walcast process."""

from __future__ import annotations

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


class Place:
    """`database` and its status, which stays alive by being written in the future."""

    def __init__(self, database: Path, writer: StatusWriter) -> None:
        self.database = database
        self._writer = writer
        self.status = Status()

    def show(self, state: State = State.STREAMING, txid: int = 100, **facts: Any) -> None:
        """That it is at this position, in term 2 unless told otherwise, and level."""
        now = time.time_ns()
        usual = Status(state, 2, Position(txid, 1), txid, level_ns=now, written_ns=now + HOUR_NS)
        self.status = replace(usual, **facts)
        self._writer.write(self.status)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Streaming, at TXID 100 of term 2."""
    folder.mkdir(parents=True)
    database = folder / "app.db"
    with closing(StateDir(database)) as state, closing(StatusWriter(state.path)) as writer:
        made = Place(database, writer)
        made.show()
        yield made
