"""Take hold of an app's database: check it, see that it is in WAL mode, read its page size."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

import apsw

from walcast.dbfiles import begin_reading
from walcast.errors import ConfigError
from walcast.filesystem import check_database_file
from walcast_primary.capture.anchor import prepare

log = logging.getLogger("walcast.primary")

SWITCH_TIMEOUT_MS = 5000


class DatabaseInUse(ConfigError):
    """Somebody holds the database in a way that keeps it from being opened."""


def check_readable(path: Path) -> None:
    """ConfigError for what only looks like a database. Not for one whose WAL somebody is to go on with: closing it here
    would checkpoint that."""
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    except apsw.NotADBError as error:
        raise ConfigError(f"{path}: not a SQLite database, or an encrypted one; check the path") from error
    except apsw.Error as error:
        log.debug("cannot be read now", extra={"path": str(path), "error": str(error)})


def check_schema(path: Path) -> None:
    """ConfigError for a database whose schema cannot be read: SQLite would refuse it to every app. Asked when the log
    could not mend it, and before such a state is published."""
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(SWITCH_TIMEOUT_MS)
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    except (apsw.CorruptError, apsw.NotADBError) as error:
        again = f"stop the app, restore it (walcast restore ARCHIVE_URL -o {path} --force) or promote a follower"
        raise ConfigError(f"{path}: {error}; {again}, and start again") from error


def open_database(path: Path) -> apsw.Connection:
    """A connection on the database, in WAL mode. ConfigError, one line, when that cannot be had. It may be one whose
    schema cannot be read: `check_schema`."""
    check_database_file(path)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        prepare(connection, SWITCH_TIMEOUT_MS)
        mode = connection.pragma("journal_mode")
        if mode != "wal":
            if connection.execute("PRAGMA journal_mode=WAL").get != "wal":
                raise DatabaseInUse(f"{path}: cannot be switched to WAL mode while it is in use in mode {mode}")
            log.info("switched to WAL mode", extra={"path": str(path), "was": mode})
        # Reading creates -wal and -shm; an empty file gets its first page by the switch to WAL mode.
        begin_reading(connection)
    except apsw.NotADBError as error:
        connection.close()
        raise ConfigError(f"{path}: not a SQLite database, or an encrypted one; check the path") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        connection.close()
        raise DatabaseInUse(f"{path}: locked by another process; stop what holds it and try again") from error
    except apsw.Error as error:
        connection.close()
        raise ConfigError(f"{path}: {error}") from error
    except ConfigError:
        connection.close()
        raise
    return connection
