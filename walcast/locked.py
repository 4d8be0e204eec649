"""What "database is locked" means where an app writes to a replica by itself, said where its developer looks: in the
traceback, and rarely in the log. SQLite leaves no trace of an attempt to write, so a node cannot say it.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from walcast.connection import PrimaryMoved
from walcast.errors import Unavailable
from walcast.rarely import Rarely
from walcast.statusfile import State, Status, read_status

log = logging.getLogger("walcast.web")

_rarely = Rarely(log)
_CAUSES = 8  # adapters wrap errors in their own


def explain_locked(error: BaseException, database: Path) -> str | None:
    """Why an app's write found `database` locked for good, which is added to the error as a note; None: it did not, as
    where another writer of a primary was slow."""
    if not _is_locked(error):
        return None
    try:
        status = read_status(database)
    except Unavailable:
        return None
    if status.state is State.PRIMARY and status.is_live(time.time_ns()):
        return None
    why = _why(database, status)
    if why not in getattr(error, "__notes__", ()):
        error.add_note(why)
    _rarely.log(logging.WARNING, f"an app's own write met a replica: {error}: {why}", database, {})
    return why


def _is_locked(error: BaseException) -> bool:
    """Does an error of SQLite's stand behind it that says so, without an explanation?"""
    cause: BaseException | None = error
    for _ in range(_CAUSES):
        if cause is None or isinstance(cause, PrimaryMoved):
            return False
        if isinstance(cause, sqlite3.OperationalError):
            return getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
        cause = cause.__cause__ or cause.__context__
    return False


def _why(database: Path, status: Status) -> str:
    if status.state is State.FENCED and status.is_live(time.time_ns()):
        return f"{database}: this primary holds writers until it can renew its lease; why: walcast status {database}"
    app = status.app_url or "which it tells with --app-url"
    return (
        f"{database} is a replica on this host, of the primary at {status.primary or 'an address not known here'}: if "
        f"that is what was written, waiting does not help. Only the primary's app writes ({app}); the middleware sends "
        "it requests of every method but GET, HEAD, OPTIONS and TRACE, and with its option `writes` others, too. To "
        f"make this host the primary: walcast promote {database}"
    )
