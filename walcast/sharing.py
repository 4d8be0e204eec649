"""Who besides walcast may read the status file: whoever may read the database by its file's mode, and nobody else.

An app may run as another user than walcast, with a group or with nothing in common. The status file gets the database's
bits for reading, its group, and where root runs walcast, its owner. The state folder gets the bit for going through it,
and no others, so that names in it cannot be listed; all else in it is for its owner only. Before there is a database,
and where its group cannot be given, nothing is shared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from walcast.permissions import OWNER_ONLY, OWNER_ONLY_FOLDER, Permissions, give, permissions_of
from walcast.statedir import database_of

_READ_GROUP, _READ_OTHERS = 0o040, 0o004
_THROUGH_GROUP, _THROUGH_OTHERS = 0o010, 0o001


@dataclass(frozen=True, slots=True)
class Shared:
    """What the state folder and the status file in it are to have."""

    folder: Permissions
    status: Permissions


def shared_with(database: Permissions | None, uid: int, gid: int) -> Shared:
    """By what the database has; `uid` and `gid` are those of the process that keeps the folder."""
    if database is None:
        return Shared(Permissions(uid, gid, OWNER_ONLY_FOLDER), Permissions(uid, gid, OWNER_ONLY))
    through = _THROUGH_GROUP if database.mode & _READ_GROUP else 0
    through |= _THROUGH_OTHERS if database.mode & _READ_OTHERS else 0
    if uid == 0 and database.uid:  # to root's folder the database's owner is one of the others
        through = _THROUGH_GROUP | _THROUGH_OTHERS
    owner = database.uid if uid == 0 else uid
    return Shared(
        Permissions(uid, database.gid, OWNER_ONLY_FOLDER | through),
        Permissions(owner, database.gid, OWNER_ONLY | database.mode & (_READ_GROUP | _READ_OTHERS)),
    )


def share_status(folder: Path, status_fd: int) -> None:
    """Give the state folder, which this process keeps, and the open status file in it what they are to have now.
    OSError."""
    wanted = shared_with(permissions_of(database_of(folder)), os.geteuid(), os.getegid())
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        give(fd, wanted.folder)
    finally:
        os.close(fd)
    give(status_fd, wanted.status)
