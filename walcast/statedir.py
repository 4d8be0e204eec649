"""The folder beside a database where walcast keeps what it must remember: `app.db-walcast/`. One process at a time.

Everything in it is for the owner of the process only. What the folder says decides what a node is and where its apps
send requests, so it is believed only where nobody else could have written it, and neither it nor what is in it is
reached through a link. The one file that others may read is the status file (`walcast.sharing`).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from walcast.errors import ConfigError
from walcast.filesystem import make_directory
from walcast.locks import is_locked, try_lock
from walcast.permissions import OWNER_ONLY, OWNER_ONLY_FOLDER, Permissions, give, open_or_create
from walcast.shortage import shortage

SUFFIX = "-walcast"
STATUS = "status"
PARTIAL = ".partial"  # ends the names of what a follower has received in part, and goes on with after a restart

_LOCK = "lock"
_OTHERS_WRITE = 0o022
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not hold whoever opens it


class UnsafeState(ConfigError):
    """A state folder, or something in it, that another user may have made or could change. `path` is what is wrong."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        super().__init__(f"{path} {what}: {remedy}")
        self.path = path


def state_dir(database: Path) -> Path:
    """Where walcast keeps its state for a database: beside the file itself, whatever link the path is. ConfigError for
    a path that ends in no name, as "." and "/"."""
    file = behind_link(database)
    if not file.name:
        raise ConfigError(f"{file}: is a folder; give the path of the database file")
    return file.with_name(file.name + SUFFIX)


def database_of(folder: Path) -> Path:
    """Of which database the state folder is."""
    return folder.with_name(folder.name.removesuffix(SUFFIX))


def behind_link(database: Path) -> Path:
    """The file to which a path leads, where it is a symbolic link; else the path as it is.

    This is the one place where that is decided, for every command, the library and the adapters. SQLite keeps `-wal`
    and `-shm` beside the file, so that is where walcast's folder is. A folder beside the link means nothing.
    """
    return Path(os.path.realpath(database)) if os.path.islink(database) else database  # noqa: PTH114 - half the time


def is_path(text: str) -> bool:
    """Does a text name a database file, and not HOST:PORT? Anything with a slash, and whatever is there."""
    return "/" in text or os.path.lexists(text)


def in_use(database: Path) -> bool | None:
    """Does a process hold the state of this database? None when that cannot be told: another user's file."""
    try:
        folder = open_folder(state_dir(database))
    except FileNotFoundError:
        return False
    except (OSError, UnsafeState):
        return None
    try:
        return in_use_at(folder)
    finally:
        os.close(folder)


def in_use_at(folder: int) -> bool | None:
    """As `in_use`, of a state folder that is open."""
    try:
        fd = os.open(_LOCK, _FILE, dir_fd=folder)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return is_locked(fd, 0)
    finally:
        os.close(fd)


def open_folder(folder: Path | str, *, to_keep: bool = False) -> int:
    """A descriptor of a state folder that may be believed, for the openat(2) family. FileNotFoundError; UnsafeState
    where it is a link, where others may write to it, and where it is a stranger's.

    To read, it may belong to this user, to root or to whoever owns the database, who could write into that anything
    that he could write here. A process that is `to_keep` its own state in it must be the folder's owner.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | _FOLDER if to_keep else os.O_PATH | _FOLDER)
    except NotADirectoryError:
        if not os.path.lexists(folder):  # what is above it is no folder
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from None
        what = "is a link" if os.path.islink(folder) else "is not a folder"  # noqa: PTH114 - it may be a str
        raise UnsafeState(Path(folder), what, "move it away; walcast makes a folder of its own there") from None
    try:
        _check_folder(Path(folder), os.fstat(fd), to_keep=to_keep)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_folder(folder: Path, found: os.stat_result, *, to_keep: bool) -> None:
    me = os.geteuid()
    if found.st_uid != me and (to_keep or (found.st_uid and found.st_uid != _owner_of_database(folder))):
        what = f"belongs to the user with uid {found.st_uid}, and this process has uid {me}"
        remedy = "run walcast as the folder's owner, or look at what is in it and give it to this user (chown -R)"
        raise UnsafeState(folder, what, remedy)
    if found.st_mode & _OTHERS_WRITE:
        what = f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
        raise UnsafeState(folder, what, "look at what is in it, then close it with chmod 700")


def _owner_of_database(folder: Path) -> int | None:
    """Who owns the database, or where there is none yet, the folder in which it will be."""
    for path in (database_of(folder), folder.parent):
        try:
            return path.stat().st_uid
        except OSError:
            continue
    return None


@contextmanager
def open_state_file(folder: Path, name: str) -> Iterator[BinaryIO]:
    """A file in a state folder that may be believed, to be read. FileNotFoundError where there is none, or no folder;
    UnsafeState."""
    fd = open_folder(folder)
    try:
        file = os.open(name, _FILE, dir_fd=fd)
    except OSError as error:
        if (folder / name).is_symlink():
            raise _link(folder / name) from error
        error.filename = str(folder / name)
        raise
    finally:
        os.close(fd)
    with open(file, "rb") as opened:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UnsafeState(folder / name, "is not a file", "move it away")
        yield opened


def make_state_dir(folder: Path, *, like: Permissions | None = None) -> None:
    """Have a state folder that may be believed; a new one is for its owner only. Where root makes it, it becomes that
    of the owner in `like`. UnsafeState, OSError."""
    there = os.path.lexists(folder)
    if not there:
        make_directory(folder)
    fd = open_folder(folder)
    os.close(fd)
    if not there and like is not None and os.geteuid() == 0 and like.uid:
        fd = open_folder(folder, to_keep=True)
        try:
            give(fd, Permissions(like.uid, like.gid, OWNER_ONLY_FOLDER))
        finally:
            os.close(fd)


class StateDir:
    """The folder, created and locked for this process; the lock goes with the process."""

    def __init__(self, database: Path) -> None:
        self.path = state_dir(database)
        try:
            if not os.path.lexists(self.path):
                make_directory(self.path)
            self._fd = self._lock(database)
            try:
                self._close_to_others()
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            what = ConfigError(f"cannot keep state in {self.path}: {error.strerror}")
            raise shortage(error, self.path) or what from error

        for leftover in self.path.glob("*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)

    def _lock(self, database: Path) -> int:
        folder = open_folder(self.path, to_keep=True)
        try:
            _check_entries(self.path, folder)
            fd = open_or_create(_LOCK, dir_fd=folder)
        finally:
            os.close(folder)
        if not try_lock(fd, 0):
            os.close(fd)
            raise ConfigError(
                f"{database}: another walcast process already serves or follows it: stop that one "
                f"first (walcast status {database} shows it)"
            )
        return fd

    def _close_to_others(self) -> None:
        """An older version made the folder and most files in it readable for everybody."""
        folder = open_folder(self.path, to_keep=True)
        try:
            if os.fstat(folder).st_mode & 0o066:
                os.fchmod(folder, OWNER_ONLY_FOLDER)
            for name, found in _entries(folder):
                mode = OWNER_ONLY_FOLDER if stat.S_ISDIR(found.st_mode) else OWNER_ONLY
                if found.st_mode & 0o077 and name != STATUS:
                    os.chmod(name, mode, dir_fd=folder)
        finally:
            os.close(folder)

    def forget_partial(self) -> None:
        """Remove what a follower would go on with: nobody follows here any more."""
        for unfinished in self.path.glob(f"*{PARTIAL}"):
            shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._fd)


def _check_entries(path: Path, folder: int) -> None:
    """The folder is closed to others now; what is in it may be from a time when it was not. The status file may belong
    to the owner of the database (`walcast.sharing`)."""
    me = os.geteuid()
    for name, found in _entries(folder):
        if stat.S_ISLNK(found.st_mode):
            raise _link(path / name)
        if found.st_uid != me and not (name == STATUS and me == 0):
            what = f"belongs to the user with uid {found.st_uid}, and this process has uid {me}"
            raise UnsafeState(path / name, what, "look at what it is, then give it to this user (chown), or remove it")


def _entries(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # the process that has the lock goes on
            yield name, os.stat(name, dir_fd=folder, follow_symlinks=False)


def _link(path: Path) -> UnsafeState:
    return UnsafeState(path, "is a link", "remove it; walcast follows no links in its folder")
