"""What is at a path that is to become a replica, and may it?"""

from __future__ import annotations

import os
from pathlib import Path

from walcast.errors import ConfigError
from walcast.filesystem import SQLITE_MAGIC, check_database_file, check_local
from walcast.statedir import state_dir


def check_replica(path: Path) -> None:
    """ConfigError, before anything is changed, when `path` holds something that following would destroy."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path.parent}: Permission denied")
    if not path.exists():
        check_local(path.parent)
        return
    check_database_file(path)
    state = state_dir(path)
    if path.stat().st_size and not (state / "positions").exists() and not (state / "log").exists():
        raise ConfigError(f"{path}: holds data and is no replica; move it away, or give --replace to overwrite it")


def has_database(path: Path) -> bool:
    """Is there a database at `path`, of whoever?"""
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except FileNotFoundError:
        return False
