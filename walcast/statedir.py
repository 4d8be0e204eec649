"""The folder beside a database where walcast keeps what it must remember: `app.db-walcast/`. One process at a time."""

from __future__ import annotations

import os
from pathlib import Path

from walcast.errors import ConfigError
from walcast.locks import try_lock


def state_dir(database: Path) -> Path:
    """Where walcast keeps its state for a database."""
    return database.with_name(database.name + "-walcast")


class StateDir:
    """The folder, created and locked for this process; the lock goes with the process."""

    def __init__(self, database: Path) -> None:
        self.path = state_dir(database)
        try:
            self.path.mkdir(mode=0o755, exist_ok=True)
            self._fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot keep state in {self.path}: {error.strerror}") from error
        if not try_lock(self._fd, 0):
            os.close(self._fd)
            raise ConfigError(f"{database}: another walcast process already serves or follows it")

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._fd)
