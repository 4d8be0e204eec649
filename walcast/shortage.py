"""What ran out: room on a disk, file descriptors, memory, threads. Told apart at the border, by `errno` and by type.

Each may pass. The caller logs it, gives back what it can, and tries again later; none is a reason to end the process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from walcast.errors import DiskFull, Exhausted, Unavailable
from walcast.oserrors import at_path

FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
EXHAUSTED = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
_NO_THREAD = "can't start new thread"  # CPython has no type of its own for it
# Of SQLite's I/O errors those that say that there is no memory: for itself, to map the database, to map the wal-index.
_NO_MEMORY = frozenset([3082, 6154, 5386])  # SQLITE_IOERR_NOMEM, _MMAP, _SHMMAP


def shortage(error: BaseException, path: Path | str, *, needed_bytes: int | None = None) -> Unavailable | None:
    """DiskFull or Exhausted where `error`, met while working on `path`, says that something ran out; else None.

    `needed_bytes`: the room that the work takes, where that is known.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in FULL or _is_sqlites(error, "FullError"):
        why = os.strerror(number or errno.ENOSPC)
        return DiskFull(path, free_bytes=free_bytes(path), needed_bytes=needed_bytes, reason=why)
    no_thread = isinstance(error, RuntimeError) and _NO_THREAD in str(error)
    if number in EXHAUSTED or no_thread or isinstance(error, MemoryError) or _is_no_memory(error):
        return Exhausted(path, reason(error))
    return None


def _is_no_memory(error: BaseException) -> bool:
    if _is_sqlites(error, "IOError"):
        return getattr(error, "extendedresult", 0) in _NO_MEMORY
    return _is_sqlites(error, "NoMemError")


def _is_sqlites(error: BaseException, name: str) -> bool:
    """By name, so that apps that import this library need not load apsw."""
    kind = type(error)
    return kind.__module__ == "apsw" and kind.__name__ == name


def disk_error(error: OSError, path: Path | str, *, needed_bytes: int | None = None) -> Unavailable:
    """An error of the file system → ours, with the path and a reason."""
    return shortage(error, path, needed_bytes=needed_bytes) or Unavailable(at_path(error, path))


@contextmanager
def disk_errors(path: Path | str, *, needed_bytes: int | None = None) -> Iterator[None]:
    """OSError inside → DiskFull, Exhausted or Unavailable that names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, needed_bytes=needed_bytes) from error


def reason(error: BaseException) -> str:
    """One line, never empty: what the system says, or the error's own text, or at least its type."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def free_bytes(path: Path | str, *, for_anybody: bool = False) -> int | None:
    """What this process may still write on the disk of `path`, which need not exist; None when that cannot be told.

    `for_anybody`: what a process may that is not root's, and cannot use the reserved blocks. A quota is not seen here.
    """
    folder = path
    while True:
        try:
            facts = os.statvfs(folder)
        except FileNotFoundError:
            above = Path(folder).absolute().parent
            if above == folder:
                return None
            folder = above
            continue
        except OSError:
            return None
        blocks = facts.f_bfree if os.geteuid() == 0 and not for_anybody else facts.f_bavail
        return blocks * facts.f_frsize


def check_free(path: Path | str, needed_bytes: int, detail: str = "") -> None:
    """DiskFull, before anything is written, when the disk of `path` has less room than what is announced."""
    free = free_bytes(path)
    if free is not None and free < needed_bytes:
        raise DiskFull(path, detail, free_bytes=free, needed_bytes=needed_bytes)


def out_of_descriptors() -> bool:
    """Has this process, or the machine, none left now? For libraries that do not say why they cannot open a file."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in EXHAUSTED
    return False
