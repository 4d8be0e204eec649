"""A connection to a replica, whose refused writes say where to write.

A read pays one more Python call for it. `Connection.execute` and the like make their cursor in C, past
`Connection.cursor`; so they are here, too.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Self

from walcast.errors import Unavailable, WalcastError
from walcast.statusfile import State, read_status

# Called with `self`: super() would cost as much again.
_cursor = sqlite3.Connection.cursor
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


class PrimaryMoved(sqlite3.OperationalError, WalcastError):
    """A write on a `WritingConnection` that found the database locked, and this host not the primary any more: the
    statement did nothing, and nothing will be written here for now."""


class ReplicaReplaced(sqlite3.OperationalError, WalcastError):
    """Another file is where the replica was when this connection was opened, as after the primary's database got pages
    of another size: open a new connection. Nothing is read on this one any more."""


class ReplicaConnection(sqlite3.Connection):
    """What `Replica.connect` gives; `database` is where the replica is. All methods are as sqlite3's."""

    database = Path()
    file: tuple[int, int] | None = None
    writes = False

    def opened(self, database: Path, before: tuple[int, int] | None) -> None:
        """It was opened on the file there, which was `before` that the file that `file_at` tells."""
        self.database = database
        self.file = before if before == file_at(database) else (0, 0)  # nobody knows which of the two

    @property
    def is_replaced(self) -> bool:
        """Is there another file by now? For pools: such a connection is to be closed. Without any file, no."""
        there = file_at(self.database)
        return self.file is not None and there is not None and there != self.file

    def cursor(self, factory: Any = None) -> Any:
        return _cursor(self, ReplicaCursor if factory is None else factory)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        cursor = _cursor(self, ReplicaCursor)
        try:
            return _execute(cursor, *arguments)
        except sqlite3.OperationalError as error:
            _explain(error, self)
            raise

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        cursor = _cursor(self, ReplicaCursor)
        try:
            return _executemany(cursor, *arguments)
        except sqlite3.OperationalError as error:
            _explain(error, self)
            raise

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        cursor = _cursor(self, ReplicaCursor)
        try:
            return _executescript(cursor, *arguments)
        except sqlite3.OperationalError as error:
            _explain(error, self)
            raise

    def blobopen(self, *arguments: Any, **more: Any) -> sqlite3.Blob:
        try:
            return super().blobopen(*arguments, **more)
        except sqlite3.OperationalError as error:
            _explain(error, self)
            raise


class WritingConnection(ReplicaConnection):
    """For an app on the primary's host, which may cease to be that at any time."""

    writes = True


class ReplicaCursor(sqlite3.Cursor):
    """A cursor of such a connection. All methods are as sqlite3's."""

    __slots__ = ()

    def execute(self, *arguments: Any) -> Self:
        try:
            return _execute(self, *arguments)
        except sqlite3.OperationalError as error:
            _explain(error, self.connection)
            raise

    def executemany(self, *arguments: Any) -> Self:
        try:
            return _executemany(self, *arguments)
        except sqlite3.OperationalError as error:
            _explain(error, self.connection)
            raise

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return _executescript(self, *arguments)
        except sqlite3.OperationalError as error:
            _explain(error, self.connection)
            raise


def file_at(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Which file it is; by stat, since closing a descriptor of it would drop SQLite's locks."""
    try:
        found = os.stat(path)  # noqa: PTH116 - half the time of Path's, for every request of an app
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _explain(error: sqlite3.OperationalError, connection: sqlite3.Connection) -> None:
    """Raise ReadOnlyReplica when it was a write, PrimaryMoved, or ReplicaReplaced."""
    assert isinstance(connection, ReplicaConnection)
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN and connection.is_replaced:
        told = ReplicaReplaced(f"{error}: {connection.database} was replaced by another file; open a new connection")
        told.sqlite_errorcode, told.sqlite_errorname = error.sqlite_errorcode, error.sqlite_errorname
        raise told from error
    if connection.writes:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY and not _is_primary(connection.database):
            moved = PrimaryMoved(f"{error}: {connection.database} is not the primary's any more")
            moved.sqlite_errorcode, moved.sqlite_errorname = error.sqlite_errorcode, error.sqlite_errorname
            raise moved from error
        return
    # The plain code alone: the extended ones tell of files that cannot be opened for reading.
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY:
        refused = _told(str(error), connection.database)
        refused.sqlite_errorcode, refused.sqlite_errorname = error.sqlite_errorcode, error.sqlite_errorname
        raise refused from error


def _is_primary(database: Path) -> bool:
    """Or without a node?"""
    try:
        status = read_status(database)
    except Unavailable:
        return True
    return status.state is State.PRIMARY and status.is_live(time.time_ns())


def _told(what: str, database: Path) -> ReadOnlyReplica:
    try:
        status = read_status(database)
    except Unavailable:
        return ReadOnlyReplica(f"{what}: {database} is a replica; write to the database of the primary")
    live = status.is_live(time.time_ns())
    here = live and status.state in (State.PRIMARY, State.FENCED)
    app = f", or through the app at {status.app_url}" if status.app_url else ""
    address = status.primary or "an address not known here"
    if here:
        text = f"this connection to {database} is for reading; to write here open it with sqlite3.connect"
    elif live:
        text = f"{database} is a replica; write at the primary, which is at {address}{app}"
    else:
        text = f"this connection to {database} is for reading; write at the primary, which was last at {address}{app}"
    return ReadOnlyReplica(f"{what}: {text}", primary=status.primary, app_url=status.app_url, here=here)
