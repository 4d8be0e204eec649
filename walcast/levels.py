"""What a follower that counts for a barrier must have done with a commit."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Level(StrEnum):
    """`DURABLE`: applied and synced to disk, so that it outlives a power failure of the follower's host. `APPLIED`:
    visible to readers of the follower; a power failure of its host may take it back."""

    DURABLE = "durable"
    APPLIED = "applied"

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError for what is none."""
        try:
            return cls(text)
        except ValueError:
            known = " or ".join(repr(level.value) for level in cls)
            raise ValueError(f"no barrier level {text!r}: give {known}") from None
