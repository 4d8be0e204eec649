"""What is beside a database of which no node says anything: whether an app may write it by itself, and what is wrong.

Where no node ever ran beside a database file, as in development and in tests, the app is all there is. A state folder,
even one that cannot be looked into, says that the file may be a replica, and that nobody may write it without a node.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from walcast.statedir import state_dir
from walcast.web import answers


@dataclass(frozen=True, slots=True)
class Beside:
    """`alone`: there is a database, and no node ever ran beside it. Else `why` is for the log, and `answer`, which
    names no path, for visitors."""

    alone: bool = False
    why: str = ""
    answer: str = answers.NO_PRIMARY


def look_beside(database: Path, error: Exception | None = None) -> Beside:
    """`error`: why the status file could not be read."""
    folder = state_dir(database)
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return _without_folder(database)
    except OSError as failed:
        return _unreadable(folder, failed)
    cause = error.__cause__ if error is not None else None
    if isinstance(cause, OSError):
        return _unreadable(folder, cause)
    return Beside(why=str(error) if error is not None else "")


def may_be_alone(database: Path, told: bool | None) -> bool:
    """May an app that was `told` its option `standalone` write the database where no node says anything?"""
    return told or (told is None and look_beside(database).alone)


def _without_folder(database: Path) -> Beside:
    try:
        found = database.stat()
    except (FileNotFoundError, NotADirectoryError):
        what = "no such file, and walcast has not run here"
        remedy = "start walcast on this host, or, for an app without walcast, make the database or set standalone"
        return Beside(why=f"{database}: {what}: {remedy}", answer=answers.NO_DATABASE)
    except OSError as failed:
        return _unreadable(database, failed)
    if not stat.S_ISREG(found.st_mode):
        return Beside(why=f"{database}: is not a file: name the database", answer=answers.NO_DATABASE)
    return Beside(alone=True)


def _unreadable(path: Path, error: OSError) -> Beside:
    why = f"{path}: {error.strerror} (this process has uid {os.geteuid()})"
    if isinstance(error, PermissionError):
        why += ": run the app as walcast's user, or let its user read the database file, which opens the status to it"
        return Beside(why=why, answer=answers.NOT_ALLOWED)
    return Beside(why=why)
