"""The file that a restore makes: hidden and locked beside its place until it is whole, then put there at once.

A restore that is killed leaves its hidden file behind. The next one of the same target removes it: the lock that the
kernel took back with the process tells it from the file of a restore that is still running.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from walcast.errors import ConfigError, DiskFull, Unavailable
from walcast.filesystem import fsync_directory, make_directory
from walcast.locks import try_lock
from walcast.oserrors import at_path
from walcast.permissions import OWNER_ONLY, create_file, inherit
from walcast.shortage import reason, shortage

SIDE_SUFFIXES = ("-wal", "-shm", "-journal")

_WRONG_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST}
_ATTEMPTS = 10


def check_output(output: Path, *, force: bool) -> None:
    """ConfigError when something is in the way."""
    if output.is_dir():
        raise ConfigError(f"{output} is a directory: give the path of the database file")
    if not force:
        if os.path.lexists(output):
            raise ConfigError(f"{output} exists: give another output path, or --force to replace the database")
        left = [str(path) for path in side_files(output) if os.path.lexists(path)]
        if left:
            what = f"{output} is gone, and files of it are left"
            raise ConfigError(f"{what}: remove them first (rm {' '.join(left)}), or give walcast restore --force")


def side_files(output: Path) -> list[Path]:
    """What SQLite keeps beside a database: it would play an old one of these into a new database."""
    return [output.with_name(output.name + suffix) for suffix in SIDE_SUFFIXES]


@contextmanager
def temporary_beside(output: Path) -> Iterator[Path]:
    """An empty hidden file beside `output`, gone at the end; missing folders are made, and gone after an error."""
    with _disk_errors(output), _made_folders(output.parent):
        remove_leftovers(output)
        path, descriptor = _create(output)
        try:
            yield path
        finally:
            for left in (path, *side_files(path)):
                left.unlink(missing_ok=True)
            os.close(descriptor)


def put_in_place(temporary: Path, output: Path, *, force: bool, mode: int = OWNER_ONLY) -> None:
    """The rename, durable. With `force` over what is there, with the owner and mode of that; a new file has `mode`."""
    inherit(temporary, output, mode)
    if force:
        for path in side_files(output):
            path.unlink(missing_ok=True)
        fsync_directory(output.parent)
        temporary.replace(output)
    else:
        check_output(output, force=False)
        try:
            output.hardlink_to(temporary)  # unlike a rename, never over a file that came meanwhile
        except FileExistsError:
            raise ConfigError(f"{output} was made by somebody else meanwhile") from None
        except OSError:  # a file system without hard links
            temporary.replace(output)
    fsync_directory(output.parent)


def remove_leftovers(output: Path) -> None:
    """Remove the hidden files of restores to `output` that were killed."""
    ours = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}\.walcast-restore")
    with os.scandir(output.parent) as entries:
        names = [entry.name for entry in entries if ours.fullmatch(entry.name)]
    for name in names:
        path = output.with_name(name)
        with contextlib.suppress(OSError):  # it costs space, nothing else
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if try_lock(descriptor, 0):
                    for left in (*side_files(path), path):
                        left.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _create(output: Path) -> tuple[Path, int]:
    for _ in range(_ATTEMPTS):
        path = output.with_name(f".{output.name}.{secrets.token_hex(4)}.walcast-restore")
        descriptor = create_file(path)
        try:
            locked = try_lock(descriptor, 0)
        except OSError:  # a file system without locks: there a leftover cannot be told either, and stays
            return path, descriptor
        if locked and os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # `remove_leftovers` of another restore came between the two calls
    raise Unavailable(f"cannot write {output}: other restores of the same file are in the way")


@contextmanager
def _made_folders(folder: Path) -> Iterator[None]:
    made: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            make_directory(path)
            made.append(path)
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # somebody else uses it
                path.rmdir()
        raise


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """One line for what the file system says; the temporary file is gone when it is written."""
    try:
        yield
    except OSError as error:
        what = f"cannot write {at_path(error, output)}"
        if error.errno in _WRONG_PLACE:
            raise ConfigError(what) from error
        full = shortage(error, output)
        if isinstance(full, DiskFull):
            raise DiskFull(
                output, "nothing was left behind", free_bytes=full.free_bytes, reason=reason(error)
            ) from error
        raise Unavailable(what) from error
