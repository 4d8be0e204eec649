"""Tokens for reading your writes: a primary hands one out after a commit, a replica waits until it has applied it.

A token is `term-txid` in hex, as in `3-1f4a`: short, opaque to apps, safe in a cookie, a header or a URL. Tokens
order by term, then TXID. TXIDs alone do not order across a failover: the new primary gives TXIDs that the old one may
have given to commits which nobody else got. Such commits are in no replica, ever; a replica in the newer term counts
as past their tokens, so that nobody waits for them. `Primary.barrier(followers=1)` makes sure that a commit is not
one of those.
"""

from __future__ import annotations

import re
from typing import Self

from walcast import errors
from walcast.levels import Level
from walcast.position import Position

_TOKEN = re.compile(r"(0|[1-9a-f][0-9a-f]{0,7})-(0|[1-9a-f][0-9a-f]{0,15})")


class Token(str):
    """A string `term-txid` that compares as the pair of numbers.

    `Token(text)` takes what `str(token)` gave; ValueError for anything else, so it is safe on what a client sent.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if _TOKEN.fullmatch(text) is None:
            raise ValueError(f"not a token: {text[:40]!r} (term, a dash, TXID; in hex)")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, term: int, txid: int) -> Self:
        """The token of a TXID in a term."""
        return cls(f"{term:x}-{txid:x}")

    @property
    def term(self) -> int:
        """The term of the primary that gave it."""
        return int(self.partition("-")[0], 16)

    @property
    def txid(self) -> int:
        """The newest TXID it covers."""
        return int(self.partition("-")[2], 16)

    def __lt__(self, other: str) -> bool:
        return _order(self) < _order(other)

    def __le__(self, other: str) -> bool:
        return _order(self) <= _order(other)

    def __gt__(self, other: str) -> bool:
        return _order(self) > _order(other)

    def __ge__(self, other: str) -> bool:
        return _order(self) >= _order(other)

    # Written one way only, so equal tokens are equal strings.
    __eq__ = str.__eq__
    __hash__ = str.__hash__


def _order(text: str) -> tuple[int, int]:
    token = text if isinstance(text, Token) else Token(text)
    return token.term, token.txid


class StaleReplica(errors.StaleReplica):
    """Not applied in time: `token`, within `timeout` seconds; None: it has not caught up. The replica is at `position`
    of `term`, in `state`."""

    def __init__(
        self, message: str, *, token: Token | Position | None, position: Position, term: int, state: str, timeout: float
    ) -> None:
        super().__init__(message)
        self.token = token
        self.position = position
        self.term = term
        self.state = state
        self.timeout = timeout


class NotEnoughFollowers(errors.Unavailable):
    """Only `applied` of `wanted` followers have `position`, as the barrier's `level` says. The commits are on the
    primary: `token` is valid."""

    def __init__(
        self, message: str, *, token: Token, position: Position, applied: int, wanted: int, level: Level = Level.DURABLE
    ) -> None:
        super().__init__(message)
        self.token = token
        self.position = position
        self.applied = applied
        self.level = level
        self.wanted = wanted


class NotPrimary(errors.Unavailable):
    """The node that was asked is not the primary now. `primary`: HOST:PORT of the one that is, as far as it knows; ""
    when it does not."""

    def __init__(self, message: str, *, primary: str) -> None:
        super().__init__(message)
        self.primary = primary
