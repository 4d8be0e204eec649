"""A connection to a replica, whose refused writes say where to write.

A read pays for it with one more Python call, a fifth of a microsecond or so.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from walcast.errors import Unavailable, WalcastError
from walcast.statusfile import State, read_status

# Called with `self`: super() would cost as much again.
_execute = sqlite3.Cursor.execute
_executemany = sqlite3.Cursor.executemany
_executescript = sqlite3.Cursor.executescript


class ReadOnlyReplica(sqlite3.OperationalError, WalcastError):
    """A write on a connection of `Replica.connect`. `primary`: HOST:PORT of the primary as far as this host knows, and
    `app_url` where the app answers there; both "" when nobody said. `here`: the database on this host is the primary's.
    """

    def __init__(self, message: str, *, primary: str = "", app_url: str = "", here: bool = False) -> None:
        super().__init__(message)
        self.primary = primary
        self.app_url = app_url
        self.here = here


class ReplicaConnection(sqlite3.Connection):
    """What `Replica.connect` gives; `database` is where the replica is."""

    database = Path()

    def cursor(self, factory: Any = None) -> Any:
        """As sqlite3's; the methods of the connection that execute go through it."""
        return super().cursor(ReplicaCursor if factory is None else factory)

    def blobopen(self, *arguments: Any, **more: Any) -> sqlite3.Blob:
        """As sqlite3's."""
        try:
            return super().blobopen(*arguments, **more)
        except sqlite3.OperationalError as error:
            _explain(error, self)
            raise


class ReplicaCursor(sqlite3.Cursor):
    """A cursor of such a connection."""

    def execute(self, *arguments: Any) -> Any:
        """As sqlite3's."""
        try:
            return _execute(self, *arguments)
        except sqlite3.OperationalError as error:
            _explain(error, self.connection)
            raise

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        """As sqlite3's."""
        try:
            return _executemany(self, sql, parameters)
        except sqlite3.OperationalError as error:
            _explain(error, self.connection)
            raise

    def executescript(self, sql: str, /) -> Any:
        """As sqlite3's."""
        try:
            return _executescript(self, sql)
        except sqlite3.OperationalError as error:
            _explain(error, self.connection)
            raise


def _explain(error: sqlite3.OperationalError, connection: sqlite3.Connection) -> None:
    """Raise ReadOnlyReplica when it was a write."""
    # The plain code alone: the extended ones tell of files that cannot be opened for reading.
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY:
        assert isinstance(connection, ReplicaConnection)
        told = _told(str(error), connection.database)
        told.sqlite_errorcode, told.sqlite_errorname = error.sqlite_errorcode, error.sqlite_errorname
        raise told from error


def _told(what: str, database: Path) -> ReadOnlyReplica:
    try:
        status = read_status(database)
    except Unavailable:
        return ReadOnlyReplica(f"{what}: {database} is a replica; write to the database of the primary")
    if status.state is State.PRIMARY and status.is_live(time.time_ns()):
        text = f"{what}: this connection to {database} is for reading; to write here open it with sqlite3.connect"
        return ReadOnlyReplica(text, primary=status.primary, app_url=status.app_url, here=True)
    where = f"at {status.primary}" if status.primary else "wherever it is now"
    app = f", or through its app at {status.app_url}" if status.app_url else ""
    text = f"{what}: {database} is a replica; write on the primary, {where}{app}"
    return ReadOnlyReplica(text, primary=status.primary, app_url=status.app_url)
