"""What a follower asks and tells the node that it belongs to. `Alone` is a node that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.terms import TermStart


class Owner(Protocol):
    """All but `keep` are called in the event loop."""

    def streaming(self, primary: str, term: int, history: Sequence[TermStart]) -> None:
        """A stream of the primary of `term` began."""

    def lost(self, error: Exception) -> None:
        """The stream ended, or none could be had."""

    def keep(self, fork: Position) -> bool:
        """The replica has transactions after `fork` that the primary does not have, and is about to lose them. True
        when they are kept now; else the pages that are overwritten will be. Called in a thread."""

    async def take_over(self, offer: pb.HandOver) -> pb.HandOverReply:
        """The primary offers its place. The applier may be released meanwhile."""


class Alone:
    """A follower and nothing else."""

    def streaming(self, primary: str, term: int, history: Sequence[TermStart]) -> None:
        """Nothing."""

    def lost(self, error: Exception) -> None:
        """Nothing."""

    def keep(self, fork: Position) -> bool:
        """Nothing is kept."""
        return False

    async def take_over(self, offer: pb.HandOver) -> pb.HandOverReply:
        """No."""
        return pb.HandOverReply(term=offer.term, taken=False, detail="this follower cannot become a primary")
