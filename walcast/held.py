"""A database that changes hands inside one process, between a capture and an applier: never closed, never unlocked.

The last connection that closes deletes the WAL and with it every lock on the wal-index; a lock that is given up for a
moment lets an app write something that belongs to neither role. So the open files go from one to the other, with one
connection and, while `locked`, SQLite's write lock, which belongs to the open file of `-shm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from walcast.dbfiles import DatabaseFiles
from walcast.statedir import StateDir


@dataclass(slots=True)
class Held:
    """`files` must be writable, and stay open until after `connection` is closed (see `walcast.dbfiles`)."""

    files: DatabaseFiles
    connection: apsw.Connection
    state: StateDir

    def close(self) -> None:
        """Let go of it: connection first."""
        self.connection.close()
        self.files.close()
        self.state.close()
