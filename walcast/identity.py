"""Which database is it? A random id, given to a database when its history begins and kept by every copy of it.

`app.db-walcast/database-id` holds 32 lowercase hexadecimal digits and a newline. The primary sends the id with every
stream and every copy, a follower says the id of its replica, and the archive and the lease name the id of the database
that they belong to. Where two ids differ, neither side may overwrite the other.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import NewType

from walcast.errors import ConfigError
from walcast.filesystem import fsync_directory, write_durably
from walcast.permissions import permissions_of
from walcast.statedir import database_of, make_state_dir, open_state_file, state_dir

DatabaseId = NewType("DatabaseId", str)

NAME = "database-id"
DIGITS = 32

_PATTERN = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
_SHOWN = 40


class OtherDatabase(ConfigError):
    """Two sides that should be of one database are of two. `mine` and `theirs` are the ids, "" where unknown."""

    def __init__(self, message: str, *, mine: str = "", theirs: str = "") -> None:
        super().__init__(message)
        self.mine = mine
        self.theirs = theirs


def make_database_id() -> DatabaseId:
    """A new one."""
    return DatabaseId(secrets.token_hex(DIGITS // 2))


def parse_database_id(text: str) -> DatabaseId:
    """ValueError for anything but 32 lowercase hexadecimal digits."""
    if _PATTERN.fullmatch(text) is None:
        raise ValueError(f"{text[:_SHOWN]!r} is not a database id, which has {DIGITS} lowercase hexadecimal digits")
    return DatabaseId(text)


def read_database_id(folder: Path) -> DatabaseId | None:
    """What the state folder says; None when it says nothing. ConfigError when the file is damaged."""
    path = folder / NAME
    try:
        with open_state_file(folder, NAME) as file:
            data = file.read(DIGITS + 2)
    except FileNotFoundError:
        return None
    try:
        return parse_database_id(data.decode("ascii", "replace").removesuffix("\n"))
    except ValueError as error:
        raise ConfigError(
            f"{path}: damaged ({error}); write into it the database_id that `walcast status --json` shows for another "
            "node of the set, or that is in the object walcast-database of the archive"
        ) from error


def id_of_database(database: Path) -> DatabaseId | None:
    """That of the database at this path; None also where there is no database: what an older one left says nothing.

    The file is not opened: closing it would take SQLite's locks away from a connection of this process.
    """
    try:
        there = database.stat().st_size > 0
    except FileNotFoundError:
        return None
    return read_database_id(state_dir(database)) if there else None


def write_database_id(folder: Path, database_id: DatabaseId) -> None:
    """Durably, and all or nothing; the folder is made if it is missing, and where root makes it, for the database's
    owner."""
    make_state_dir(folder, like=permissions_of(database_of(folder)))
    write_durably(folder / NAME, f"{database_id}\n".encode())
    fsync_directory(folder.parent)


def forget_database_id(folder: Path) -> None:
    """Durably: from now on the database is a copy of none."""
    path = folder / NAME
    if path.exists():
        path.unlink()
        fsync_directory(folder)
