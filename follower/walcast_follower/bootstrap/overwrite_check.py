"""What is at a path that is to become a replica, and may it?"""

from __future__ import annotations

import os
from pathlib import Path

from walcast.errors import ConfigError
from walcast.filesystem import SQLITE_MAGIC, check_database_file, check_local
from walcast.identity import read_database_id
from walcast.planted import check_not_planted
from walcast.statedir import state_dir


def check_replica(path: Path) -> None:
    """ConfigError, before anything is changed, when `path` holds something that following would destroy."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; make it first, or check the path")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path.parent}: Permission denied")
    if not path.exists():
        check_local(path.parent)
        return
    check_not_planted(path)
    check_database_file(path)
    if not path.stat().st_size:
        return
    state = state_dir(path)
    if read_database_id(state) is None and not _has_positions(state):
        raise ConfigError(f"{path}: holds data and is no replica; move it away, or give --replace to overwrite it")


def _has_positions(state: Path) -> bool:
    """Were transactions applied here? What an older walcast followed has no id: whether it is a replica of what it is
    to follow now, its position decides (`walcast_follower.bootstrap.replica_identity`)."""
    try:
        return (state / "positions").stat().st_size > 0
    except FileNotFoundError:
        return False


def has_database(path: Path) -> bool:
    """Is there a database at `path`, of whoever?"""
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except FileNotFoundError:
        return False
