"""A node with a planted bug, named by PLANTED_BUG, or "slow-open": one whose replica takes its time to be read.
Arguments as `walcast`."""

from __future__ import annotations

import math
import os
import random
import time
from typing import Any

from walcast.scrub import Scrubber
from walcast.store.directory import DirectoryStore
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.overwritten_pages import Keeping
from walcast_follower.following import Following
from walcast_follower.status_reporter import Showing
from walcast_follower.subscribe.primary_client import Stream
from walcast_node.cli import main
from walcast_node.failover import claims, decisions, keeper, leasing, role_changes
from walcast_node.failover.keeper import Keeper
from walcast_node.failover.leasing import Leasing
from walcast_node.failover.member import Member
from walcast_node.failover.member_status import Shown
from walcast_node.http.server import HttpServer
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.capture.capture_thread import CaptureLoop
from walcast_primary.publish.served_database import Served
from walcast_primary.tenure import Tenure

swap = DirectoryStore.swap
read_lasts = Stream.lasts
open_replica = Applier.open.__func__


def swap_whatever_is_there(self: DirectoryStore, key: str, data: bytes, version: str | None) -> str:
    """The lease goes to whoever asks."""
    if key.startswith("."):
        return swap(self, key, data, version)  # the probe at the start
    found = self.read(key)
    return swap(self, key, data, found.version if found else None)


def lasts_for_ever(self: Stream, tenure_ms: int) -> None:
    """A follower that takes whatever comes from whom it follows."""
    read_lasts(self, 0)


def by_id(claim: claims.Claim) -> tuple[int, int, int, str]:
    """Whoever is first in the alphabet takes over."""
    return (0, 0, 0, claim.id)


def open_slowly(cls: type[Applier], *arguments: Any) -> Applier:
    """As for a large one."""
    time.sleep(1.0)
    return open_replica(cls, *arguments)


def lacking(owner: Any, name: str, chance: float) -> None:
    """Let what is called so raise MemoryError, before and after it has done its work, now and then."""
    work = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)

    def planted(*arguments: Any, **more: Any) -> Any:
        if random.random() < chance / 2:
            raise MemoryError
        result = work(*arguments, **more)
        if random.random() < chance / 2:
            if hasattr(result, "close"):
                result.close()  # of a coroutine
            raise MemoryError
        return result

    setattr(owner, name, planted)


def plant_memory_errors() -> None:
    """In every loop of a node."""
    random.seed(int(os.environ.get("PLANTED_SEED", "1")))
    for owner, names, chance in (
        (keeper, ["step"], 0.05),
        (Keeper, ["_begin", "_read", "_failed", "_put", "_read_claims"], 0.05),
        (role_changes, ["promote", "on_air", "go_to", "fence", "resume", "stand"], 0.15),
        (Leasing, ["_set_tenure", "feed"], 0.05),
        (Shown, ["show"], 0.2),
        (Member, ["_change", "_listen"], 0.1),
        (Archiver, ["_take_a_turn", "_failed"], 0.3),
        (CaptureLoop, ["_work", "_in_trouble"], 0.1),
        (Following, ["_lost", "_turn_away", "_begin", "_connected"], 0.2),
        (Showing, ["show", "hear"], 0.02),
        (Scrubber, ["step"], 0.3),
        (HttpServer, ["_take", "_ended"], 0.3),
    ):
        for name in names:
            lacking(owner, name, chance)


def plant(bug: str) -> None:
    if bug == "swap":
        DirectoryStore.swap = swap_whatever_is_there  # type: ignore[method-assign]
    elif bug == "tenure":  # a primary that never notices that its time is over
        Tenure.holds = property(lambda self: not self.ended)  # type: ignore[assignment, method-assign]
        decisions._fence_when_over = lambda state, now_s: (state, ())  # type: ignore[assignment]
        Stream.lasts = lasts_for_ever  # type: ignore[method-assign]
    elif bug == "publisher":  # publishes and answers barriers after its time
        Served.check_tenure = lambda self: None  # type: ignore[method-assign]
        Tenure.left_ms = property(lambda self: 0)  # type: ignore[assignment, method-assign]
    elif bug == "election":
        claims._order = by_id
    elif bug == "discarded":  # overwrites what only it had, and keeps nothing
        role_changes.keep_discarded = lambda member, fork: True  # type: ignore[assignment]
        Keeping._save = lambda self, term, position: None  # type: ignore[method-assign]
    elif bug == "slow-open":
        Applier.open = classmethod(open_slowly)  # type: ignore[assignment, method-assign]
    elif bug == "silence":  # notices a primary's silence when others have taken its place
        leasing.SILENT = math.inf
    elif bug == "memory":
        plant_memory_errors()
    else:
        raise SystemExit(f"no such bug: {bug!r}")


plant(os.environ["PLANTED_BUG"])
main()
