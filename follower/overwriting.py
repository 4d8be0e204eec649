"""May a path become a replica, whose contents are the primary's?"""

from __future__ import annotations

import os
from pathlib import Path

from walcast.errors import ConfigError
from walcast.filesystem import check_database_file, check_local
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
