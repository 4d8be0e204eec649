"""The ledger: which rows were tried, committed where, acknowledged. Pure; who uses it from threads holds a lock.

A *reign* is a run of commits at one node. A barrier that was asked of a node after a row was committed there, in the
same reign, and which a follower has answered for, acknowledges the row: it must survive whatever happens. What was only
committed may be lost with its node; then it must be kept somewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Row:
    """A commit, as SQLite told the app. Seconds of one monotonic clock."""

    number: int
    node: str
    reign: int
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What was committed when a barrier was sent to the node of a reign."""

    node: str
    reign: int
    rows: int


@dataclass(slots=True)
class Ledger:
    """All rows in the order in which they were committed. `unknown`: rows of which SQLite did not say it."""

    rows: list[Row] = field(default_factory=list)
    attempted: int = 0
    unknown: set[int] = field(default_factory=set)
    _begins: list[int] = field(default_factory=list)
    _acknowledged: dict[int, int] = field(default_factory=dict)

    def commit(self, number: int, node: str, began_s: float, ended_s: float) -> None:
        """SQLite said that it is committed."""
        if not self.rows or self.rows[-1].node != node:
            self._begins.append(len(self.rows))
        self.rows.append(Row(number, node, len(self._begins) - 1, began_s, ended_s))
        self.attempted = max(self.attempted, number)

    @property
    def node(self) -> str:
        """Where the newest row is; "" before the first."""
        return self.rows[-1].node if self.rows else ""

    def ask(self) -> Asked | None:
        """Before a barrier: what it will acknowledge."""
        if not self.rows:
            return None
        return Asked(self.node, self.rows[-1].reign, len(self.rows))

    def acknowledge(self, asked: Asked) -> None:
        """The barrier was answered for."""
        self._acknowledged[asked.reign] = max(asked.rows, self._acknowledged.get(asked.reign, 0))

    def acknowledged(self) -> set[int]:
        """Numbers of the rows that must survive."""
        found: set[int] = set()
        for reign, end in self._acknowledged.items():
            found.update(row.number for row in self.rows[self._begins[reign] : end] if row.reign == reign)
        return found

    def committed(self) -> set[int]:
        """Numbers of all rows of which SQLite said so."""
        return {row.number for row in self.rows}

    def lost(self, present: set[int]) -> list[Row]:
        """Committed and not there any more."""
        return [row for row in self.rows if row.number not in present]

    def first_after(self, at_s: float, nodes: Iterable[str]) -> Row | None:
        """The first row committed after a moment at one of these nodes."""
        wanted = set(nodes)
        newest = None
        for row in reversed(self.rows):
            if row.ended_s <= at_s:
                break
            if row.node in wanted:
                newest = row
        return newest

    def last_before(self, row: Row) -> Row | None:
        """The commit before it, wherever."""
        at = self.rows.index(row, max(0, self._begins[row.reign] - 1))
        return self.rows[at - 1] if at else None

    def rates(self, since_s: float, until_s: float, bin_s: float) -> list[int]:
        """Commits in each `bin_s` between two moments."""
        counts = [0] * max(0, int((until_s - since_s) / bin_s) + 1)
        for row in self.rows:
            at = int((row.ended_s - since_s) / bin_s)
            if 0 <= at < len(counts):
                counts[at] += 1
        return counts

    def pauses(self, least_s: float) -> list[tuple[float, float]]:
        """Where two commits were further apart than that."""
        pairs = pairwise(self.rows)
        return [(a.ended_s, b.ended_s) for a, b in pairs if b.ended_s - a.ended_s >= least_s]


@dataclass(frozen=True, slots=True)
class Writable:
    """At this moment somebody had, or could have had, the write lock at a node whose walcast process ran."""

    at_s: float
    node: str


def overlaps(seen: Iterable[Writable], old: str, new: str, since_s: float) -> list[Writable]:
    """Moments at which a node could be written to although it was another one's turn: after the new primary could be,
    the old one; at any time one that is neither."""
    ordered = sorted((one for one in seen if one.at_s >= since_s), key=lambda one: one.at_s)
    first_new = next((one.at_s for one in ordered if one.node == new), None)
    return [
        one
        for one in ordered
        if one.node not in (old, new) or (one.node == old != new and first_new is not None and one.at_s > first_new)
    ]
