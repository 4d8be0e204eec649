"""Which table or index each page of a database belongs to, as SQLite's `dbstat` virtual table tells it.

Only for people to read: whatever stands in the way, the answer is what is known so far and a note.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import numpy as np
from numpy.typing import NDArray

TIMEOUT_S = 20.0

_BUSY_TIMEOUT_MS = 1000
_STEPS_BETWEEN_LOOKS = 100  # of SQLite's virtual machine: some twenty pages


@dataclass(frozen=True, slots=True)
class Tree:
    """A b-tree; `table` is the one it belongs to, itself for a table."""

    kind: str
    name: str
    table: str


NO_TREE = Tree("none", "", "")  # free pages, pointer maps, and what was dropped since


@dataclass(frozen=True, slots=True)
class Trees:
    """The b-tree of each page: `trees[ids[pgno]]`, where pages past the end are as page 0, in none.

    `ids` is uint32[pages + 1]. `note` says what is missing, and is empty when all is known.
    """

    trees: tuple[Tree, ...] = (NO_TREE,)
    ids: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(1, np.uint32))
    note: str = "not looked up"

    def count(self, pgnos: NDArray[np.uint32]) -> list[tuple[Tree, int]]:
        """How many of these pages each b-tree has, most first, those in none last."""
        known = np.where(pgnos < len(self.ids), pgnos, 0)
        counts = np.bincount(self.ids[known], minlength=1).tolist()
        found = [(self.trees[i], count) for i, count in enumerate(counts) if count]
        return sorted(found, key=lambda pair: (pair[0] is NO_TREE, -pair[1], pair[0].name))


def trees_of(database: Path, timeout_s: float = TIMEOUT_S, stop: Callable[[], bool] = lambda: False) -> Trees:
    """Read through the whole database, in a connection of its own; ends early after `timeout_s`, or when told to stop.

    Memory: four bytes a page.
    """
    end_s = time.monotonic() + timeout_s
    try:
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        return Trees(note=f"the database cannot be opened: {error}")
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.set_progress_handler(lambda: time.monotonic() > end_s or stop(), _STEPS_BETWEEN_LOOKS)
        return _read(connection, timeout_s)
    finally:
        connection.close()


def _read(connection: apsw.Connection, timeout_s: float) -> Trees:
    names: dict[str, int] = {}
    described: dict[str, Tree] = {"sqlite_schema": Tree("table", "sqlite_schema", "sqlite_schema")}
    ids = array("I", (0,))
    note = ""
    try:
        with connection:
            rows = connection.execute("SELECT type, name, tbl_name FROM sqlite_schema WHERE rootpage > 0")
            described |= {str(name): Tree(str(kind), str(name), str(table)) for kind, name, table in rows}
            ids.extend(bytes(int(connection.pragma("page_count"))))
            for name, pgno in connection.execute("SELECT name, pageno FROM dbstat"):
                if 0 < pgno < len(ids):
                    ids[pgno] = names.setdefault(str(name), len(names) + 1)
    except apsw.InterruptError:
        note = f"only in part: the database was not read through in {timeout_s:.0f} s"
    except apsw.Error as error:  # a corrupt schema or b-tree, a SQLite without dbstat
        note = f"{'only in part' if names else 'not known'}: {error}"
    trees = (NO_TREE, *(described.get(name, Tree("table", name, name)) for name in names))
    return Trees(trees, np.frombuffer(ids, np.uint32), note)
