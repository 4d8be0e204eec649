"""A primary asked by way of the socket beside its database on this host (`walcast.local`): no gRPC, no channel.

A connection a call: threads and forks share nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from walcast import local
from walcast.errors import Unavailable
from walcast.levels import Level
from walcast.position import Position
from walcast.statedir import behind_link
from walcast.token import Token


class BySocket:
    """The process that serves the database at `path`, or what a link there leads to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def barrier(self, followers: int, level: Level, timeout_s: float, answer_s: float) -> tuple[Token, Position, int]:
        """Token, position, and how many followers have it."""
        within_s = max(0.001, timeout_s)  # 0 would ask for the primary's own bound
        asked: dict[str, Any] = {"followers": followers, "level": level.value, "within_s": within_s}
        with local.ask(behind_link(self._path), "barrier", timeout_s=answer_s, **asked) as (answer, _):
            try:
                position = Position.parse(answer["position"])
                return Token.of(answer["term"], position.txid), position, int(answer["followers"])
            except (KeyError, TypeError, ValueError) as error:
                raise Unavailable(f"{self._path}: not an answer: {answer}") from error

    def status(self, answer_s: float) -> dict[str, Any]:
        """As data."""
        with local.ask(behind_link(self._path), "status", timeout_s=answer_s) as (answer, _):
            return answer

    def close(self) -> None:
        """Nothing is open."""
