"""What can be waited for at a replica, told from its status alone, and who waits for what. Pure.

A replica reaches tokens in their order, so those are kept in it: a change of the status costs a look at those it
reaches, however many wait.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import Generic, TypeVar

from walcast.position import Position
from walcast.statusfile import State, Status
from walcast.token import Token

NO_TXID_ABOVE = 1 << 64

W = TypeVar("W")


@dataclass(frozen=True, slots=True, order=True)
class Applied:
    """A token's transaction is applied. On the primary every token of its term, and of those before, is: whoever got
    one had committed there."""

    term: int
    txid: int

    @classmethod
    def of(cls, token: Token) -> Applied:
        """As the token says."""
        return cls(token.term, token.txid)

    @classmethod
    def newest(cls, status: Status, now_ns: int) -> Applied:
        """The newest one that is reached."""
        return cls(status.term, NO_TXID_ABOVE if _is_primary(status, now_ns) else status.position.txid)

    def is_reached(self, status: Status, now_ns: int) -> bool:
        """By this status?"""
        return self <= Applied.newest(status, now_ns)


@dataclass(frozen=True, slots=True)
class At:
    """A position is reached or passed. The same TXID with another checksum is another history's; a checksum of 0 is not
    known."""

    position: Position

    def is_reached(self, status: Status, now_ns: int) -> bool:
        """By this status?"""
        here, wanted = status.position, self.position
        same = here.txid == wanted.txid and wanted.checksum in (0, here.checksum)
        return here.txid > wanted.txid or same or _is_primary(status, now_ns)


@dataclass(frozen=True, slots=True)
class Level:
    """The follower streams, and readers see what is at most this old."""

    max_lag_ms: float

    def is_reached(self, status: Status, now_ns: int) -> bool:
        """By this status?"""
        streams = status.state is State.STREAMING and status.is_live(now_ns)
        return (streams and status.lag_ms(now_ns) <= self.max_lag_ms) or _is_primary(status, now_ns)


Goal = Applied | At | Level


def _is_primary(status: Status, now_ns: int) -> bool:
    return status.state is State.PRIMARY and status.is_live(now_ns)


class Waiters(Generic[W]):
    """Who waits for which goal; a waiter is anything that can be hashed."""

    def __init__(self) -> None:
        self._waiting: dict[Goal, dict[W, None]] = {}
        self._tokens: list[Applied] = []  # ascending, each once
        self._others: dict[Goal, None] = {}

    def __len__(self) -> int:
        """How many different goals there are."""
        return len(self._waiting)

    def add(self, goal: Goal, waiter: W) -> None:
        """It waits."""
        if goal not in self._waiting:
            self._waiting[goal] = {}
            if isinstance(goal, Applied):
                insort(self._tokens, goal)
            else:
                self._others[goal] = None
        self._waiting[goal][waiter] = None

    def remove(self, goal: Goal, waiter: W) -> None:
        """It does not wait any more, if it did."""
        waiting = self._waiting.get(goal, {})
        waiting.pop(waiter, None)
        if not waiting and self._waiting.pop(goal, None) is not None:
            if isinstance(goal, Applied):
                del self._tokens[bisect_left(self._tokens, goal)]
            else:
                del self._others[goal]

    def pop_reached(self, status: Status, now_ns: int) -> list[W]:
        """Those whose goal this status reaches; they are not here any more."""
        count = bisect_right(self._tokens, Applied.newest(status, now_ns))
        reached: list[Goal] = [*self._tokens[:count], *(g for g in self._others if g.is_reached(status, now_ns))]
        del self._tokens[:count]
        for goal in reached[count:]:
            del self._others[goal]
        return [waiter for goal in reached for waiter in self._waiting.pop(goal)]
