"""The folder beside a database where walcast keeps what it must remember: `app.db-walcast/`. One process at a time."""

from __future__ import annotations

import os
from pathlib import Path

from walcast.errors import ConfigError
from walcast.filesystem import make_directory
from walcast.locks import is_locked, try_lock
from walcast.shortage import shortage


def state_dir(database: Path) -> Path:
    """Where walcast keeps its state for a database."""
    return database.with_name(database.name + "-walcast")


def behind_link(database: Path) -> Path:
    """The database itself, where that is what a link leads to: as SQLite's own side files, the folder is beside it."""
    return database.resolve() if database.is_symlink() and not state_dir(database).exists() else database


def in_use(database: Path) -> bool | None:
    """Does a process hold the state of this database? None when that cannot be told: another user's file."""
    try:
        fd = os.open(f"{database}-walcast/lock", os.O_RDONLY | os.O_CLOEXEC)  # as `state_dir`, for every page of an app
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return is_locked(fd, 0)
    finally:
        os.close(fd)


class StateDir:
    """The folder, created and locked for this process; the lock goes with the process."""

    def __init__(self, database: Path) -> None:
        self.path = state_dir(database)
        try:
            make_directory(self.path, 0o755)
            self._fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            what = ConfigError(f"cannot keep state in {self.path}: {error.strerror}")
            raise shortage(error, self.path) or what from error
        if not try_lock(self._fd, 0):
            os.close(self._fd)
            raise ConfigError(f"{database}: another walcast process already serves or follows it")

        for leftover in self.path.glob("*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._fd)
