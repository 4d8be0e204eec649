"""Owner and mode of the files that walcast makes, whatever the umask says.

The model is SQLite's (`findCreateFileMode` in os_unix.c): `-wal` and `-shm` have the mode of the database, and where
root makes them, also its owner. A file here is made for its owner only and gets its owner, its group and its mode in
that order, so that at no moment anybody can open it who could not at the end.
"""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from walcast.errors import ConfigError

OWNER_ONLY = 0o600
OWNER_ONLY_FOLDER = 0o700

_MODE = re.compile(r"0?[0-7]{3}")
_SHOWN = 20
_ACL = "system.posix_acl_access"
_ACL_ENTRY = struct.Struct("<HHI")  # acl(5): tag, permissions, id; a version of four bytes stands before the first
_ACL_VERSION_BYTES = 4
_ACL_GROUP, _ACL_MASK = 0x04, 0x10


@dataclass(frozen=True, slots=True)
class Permissions:
    """Who may do what with a file; `mode` has the nine bits for owner, group and others."""

    uid: int
    gid: int
    mode: int

    def granted(self, gid: int) -> int:
        """The mode for a file whose group is `gid`: these bits if it is the group that they are meant for. Members of
        another group get what the right group and all others have both, and so does everybody else, who may be a member
        of the right one."""
        if gid == self.gid:
            return self.mode
        both = (self.mode >> 3) & self.mode & 0o7
        return self.mode & 0o700 | both << 3 | both


def parse_mode(text: str) -> int:
    """ "0640" → 0o640. ConfigError for what is no mode of a database: its owner must read and write it, and nobody run
    it."""
    if _MODE.fullmatch(text) is None or int(text, 8) & 0o600 != OWNER_ONLY or int(text, 8) & ~0o666:
        raise ConfigError(f"{text[:_SHOWN]!r} is not a mode for a database; give one as 0600, 0640 or 0660")
    return int(text, 8)


def permissions_of(path: Path) -> Permissions | None:
    """Of the file at `path`, or behind a link there; None where there is none. The file is not opened: closing it would
    take SQLite's locks away from a connection of this process."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    mode = found.st_mode & 0o777
    group = _group_of_acl(path)
    return Permissions(found.st_uid, found.st_gid, mode if group is None else mode & ~0o070 | group << 3)


def _group_of_acl(path: Path) -> int | None:
    """What the group may do where the file has an access control list: the mode's bits for the group are then the most
    that anybody in the list may. None where it has none."""
    try:
        data = os.getxattr(path, _ACL)
    except OSError:
        return None
    entries = _ACL_ENTRY.iter_unpack(data[_ACL_VERSION_BYTES:]) if len(data) % 8 == _ACL_VERSION_BYTES else ()
    found: dict[int, int] = {tag: bits for tag, bits, _ in entries}
    return found.get(_ACL_GROUP, 0) & found.get(_ACL_MASK, 0o7) & 0o7


def give(fd: int, wanted: Permissions) -> None:
    """Owner, group and mode for an open file or folder, as far as this process may give them. OSError."""
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (wanted.uid, wanted.gid):
        try:
            os.fchown(fd, wanted.uid, wanted.gid)
        except OSError:  # only root gives files away, and their owner only to a group of his own
            with suppress(OSError):
                os.fchown(fd, -1, wanted.gid)
        found = os.fstat(fd)
    mode = wanted.granted(found.st_gid)
    if found.st_mode & 0o777 != mode:
        os.fchmod(fd, mode)


def create_file(path: Path | str, flags: int = os.O_RDWR, *, dir_fd: int | None = None) -> int:
    """A new file, for its owner only: a descriptor of it. FileExistsError where there is anything, also a link."""
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, OWNER_ONLY, dir_fd=dir_fd)
    return _owner_only(fd)


def open_or_create(path: Path | str, flags: int = os.O_RDWR, *, dir_fd: int | None = None) -> int:
    """The file at `path`, never one that a link there leads to; where there is none, a new one for its owner only."""
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, OWNER_ONLY, dir_fd=dir_fd)
    return _owner_only(fd)


def inherit(new: Path, old: Path, mode: int) -> None:
    """Give the file at `new` owner, group and mode of the one at `old`; where there is none, `mode` alone. Nobody has
    it open, or would lose SQLite's locks."""
    fd = os.open(new, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        give(fd, permissions_of(old) or Permissions(found.st_uid, found.st_gid, mode))
    finally:
        os.close(fd)


def as_in_its_folder(fd: int, folder: Path) -> None:
    """Where root makes a file for its owner only in somebody's folder: make that user the file's owner."""
    if os.geteuid() == 0:
        found = folder.stat()
        if found.st_uid:
            give(fd, Permissions(found.st_uid, found.st_gid, OWNER_ONLY))


def _owner_only(fd: int) -> int:
    """Whatever the umask took away, and whatever an older version left open."""
    try:
        found = os.fstat(fd)
        if found.st_mode & 0o777 != OWNER_ONLY:
            os.fchmod(fd, OWNER_ONLY)
    except BaseException:
        os.close(fd)
        raise
    return fd
