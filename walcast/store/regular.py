"""Opening what lies in an archive's folder, which others may write to as well.

Only a regular file is an object. No link is followed below the archive's own folder, nothing waits for somebody to open
the other end of a FIFO, and no device is opened. The archive's folder itself may be reached through links: whoever
configured its path chose them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from walcast.errors import Corrupt
from walcast.filesystem import read_at_most

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotAnObject(Corrupt):
    """What is at an object's place is none: no regular file, behind a link, or too large for what it must be."""

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__(f"{path} {what}, so it is no object of an archive: find out who put it there, and remove it")
        self.path = Path(path)


@contextmanager
def opened_folder(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """The descriptor of a folder below `root`. Raises NotAnObject where a link is on the way, and OSError."""
    descriptor = os.open(root, _FOLDER)
    try:
        for depth, part in enumerate(parts, 1):
            try:
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    path = root.joinpath(*parts[:depth])
                    raise NotAnObject(path, f"is {_kind(part, descriptor)} where a folder must be") from error
                raise
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_file(root: Path, key: str) -> Iterator[BinaryIO]:
    """The regular file of that key, to be read. Raises NotAnObject, and OSError."""
    *parts, name = key.split("/")
    with opened_folder(root, parts) as folder:
        file = open_in(folder, name, root / key)
    with file:
        yield file


def open_in(folder: int, name: str, path: Path) -> BinaryIO:
    """The regular file of that name in an open folder; `path` is for the message. Raises NotAnObject, and OSError."""
    # Looked at first: to open a device may already do something.
    _check_regular(os.stat(name, dir_fd=folder, follow_symlinks=False), path)
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotAnObject(path, "is a symbolic link or a socket") from error
        raise
    try:
        _check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_small(file: BinaryIO, most: int, path: Path) -> bytes:
    """All of an open file. NotAnObject, before anything is allocated, when it has more than `most` bytes."""
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise NotAnObject(path, f"has {size:,} bytes where at most {most:,} can be")
    data = read_at_most(file, most)
    if len(data) > most:
        raise NotAnObject(path, f"has more than {most:,} bytes")
    return data


def _check_regular(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotAnObject(path, f"is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}")


def _kind(name: str, folder: int) -> str:
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except OSError:
        return "something else"
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")
