"""Owner and mode of what an archive in a folder gets, whatever the umask says.

What is in an archive is the database, so it is for its owner only, and a folder that walcast makes is, too. Whoever
wants to share an archive says so with the folder: one that sets its group apart from everybody else (0750, 0770, 2770)
shares what is put into it with its group. A folder of mode 0755 says nothing: that is how most are made. Others get
nothing in any case. Where root puts something into another user's folder, it becomes that user's.
"""

from __future__ import annotations

import os
from pathlib import Path

from walcast.permissions import OWNER_ONLY, OWNER_ONLY_FOLDER, Permissions, create_file, give

_GROUP, _FILES = 0o070, 0o666


def object_permissions(root: Permissions) -> Permissions:
    """Of a file in an archive whose folder has `root`."""
    return Permissions(root.uid, root.gid, OWNER_ONLY | _shared(root.mode) & _FILES)


def folder_permissions(root: Permissions) -> Permissions:
    """Of a folder in it."""
    return Permissions(root.uid, root.gid, OWNER_ONLY_FOLDER | _shared(root.mode))


def _shared(mode: int) -> int:
    group, others = mode >> 3 & 0o7, mode & 0o7
    return mode & _GROUP if group != others else 0


def create_object(root: Path, path: Path | str, *, dir_fd: int | None = None) -> int:
    """A new file at `path` below `root`: a descriptor to write it. FileExistsError where there is anything."""
    fd = create_file(path, os.O_WRONLY, dir_fd=dir_fd)
    try:
        give(fd, object_permissions(_permissions(root)))
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_folder(root: Path, path: Path | str, *, dir_fd: int | None = None) -> None:
    """A new folder at `path` below `root`. FileExistsError where there is anything."""
    os.mkdir(path, OWNER_ONLY_FOLDER, dir_fd=dir_fd)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        give(fd, folder_permissions(_permissions(root)))
    finally:
        os.close(fd)


def _permissions(root: Path) -> Permissions:
    found = root.stat()
    return Permissions(found.st_uid, found.st_gid, found.st_mode & 0o777)
