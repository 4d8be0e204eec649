"""Bugs that only a power cut shows, planted into a node: so that the campaign is known to find them."""

from __future__ import annotations

import os

from walcast import filesystem
from walcast_follower.apply.durability import Durability
from walcast_primary.recovery import redo


def plant(bug: str) -> None:
    """`redo`: a database that was taken back is published as it is. `barrier`: a follower syncs nothing. `log`: the
    primary syncs no entry. `names`: small files are replaced without a sync."""
    if bug == "redo":
        redo.decide = lambda found: redo.Way.PUBLISH  # type: ignore[assignment]
    elif bug == "barrier":
        Durability.sync = Durability.sync_journal = lambda self: None  # type: ignore[method-assign]
    elif bug == "log":
        os.fdatasync = lambda fd: None  # type: ignore[assignment]
    elif bug == "names":
        filesystem.fsync_directory = lambda directory: None  # type: ignore[assignment]
        os.fsync = lambda fd: None  # type: ignore[assignment]
    else:
        raise SystemExit(f"no such bug: {bug!r}")
