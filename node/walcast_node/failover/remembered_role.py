"""A node that was started as a primary, and is a follower: its role file says so. That surprises whoever started it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from walcast.facts import moment_text
from walcast.rarely import Rarely
from walcast.statedir import state_dir
from walcast.terms import FOLLOWER, PRIMARY, read_standing, standing_since_s
from walcast_node.config.settings import MemberSettings

log = logging.getLogger("walcast.failover")

EVENT = "this node is a follower, though it was started as a primary: apps that write here get `database is locked`"
LOOK_S = 30.0  # less than the shortest interval of Rarely, for which a condition counts as new after that


@dataclass(frozen=True, slots=True)
class Remembered:
    """Since when, by the role file; whom it follows, "" where that is not known; `auto`: roles move by themselves."""

    path: Path
    since: str
    primary: str
    term: int
    auto: bool

    @property
    def change(self) -> str:
        """The command that makes it the primary."""
        return f"walcast promote {self.path}"

    @property
    def whom(self) -> str:
        """For people."""
        return self.primary or "a primary that it does not know yet"

    def facts(self) -> dict[str, object]:
        """For the log."""
        facts = {"path": str(self.path), "since": self.since, "follows": self.whom, "term": self.term}
        return facts | {"to_change": f"{self.change} (with --force, if {self.whom} is gone for good)"}

    def words(self) -> str:
        """For people, in one line."""
        return (
            f"{self.path} is a follower since {self.since}, of {self.whom} (term {self.term}), and not the primary: "
            f"apps that write here get 'database is locked'; to change that: {self.change}"
        )


def remembered(settings: MemberSettings) -> Remembered | None:
    """None where the node is what it is started as, or will find out. ConfigError when the role file is damaged."""
    if settings.role != PRIMARY:
        return None
    path = settings.database.path
    standing = read_standing(state_dir(path))
    if standing is None or standing.role != FOLLOWER:
        return None
    since = moment_text(int(standing_since_s(state_dir(path))))
    return Remembered(path, since, standing.primary, standing.term, settings.auto)


async def remind(what: Remembered, still: Callable[[], bool]) -> None:
    """Say it again, rarely, until it is the primary. Not in a set whose roles move by themselves: there a node that
    comes back as a follower is what is to be."""
    rarely = Rarely(log)
    rarely.due("role")  # said at the start
    while still() and not what.auto:
        await asyncio.sleep(LOOK_S)
        if still():
            rarely.log(logging.WARNING, EVENT, "role", what.facts())
