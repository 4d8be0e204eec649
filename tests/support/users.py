"""What another user of the machine gets: run in a child process that has become one. Only root can do that."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

APP, APP_GROUP = 23001, 24001  # who owns the database
STRANGER, STRANGER_GROUP = 23002, 24002

T = TypeVar("T")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_user(uid: int, gid: int, what: Callable[[], T], groups: Sequence[int] = ()) -> T:
    """What `what` returns, or raises, when that user calls it. All that it imports must be imported already."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            os.umask(0o022)
            answer: tuple[bool, object] = (True, what())
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            answer = (False, error)
        try:
            os.write(writing, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor
        data = pipe.read()
    os.waitpid(child, 0)
    good, value = pickle.loads(data)
    if not good:
        raise value
    answered: T = value
    return answered


@contextmanager
def folder_for_all(mode: int = 0o755) -> Iterator[Path]:
    """A folder that every user of the machine can reach, with this mode; pytest's own are for one user."""
    with tempfile.TemporaryDirectory(prefix="walcast-users-") as name:
        path = Path(name).resolve()
        if any(not above.stat().st_mode & 0o001 for above in path.parents):
            pytest.skip(f"other users cannot reach {path}")
        path.chmod(mode)
        yield path


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """For this process and those that it starts."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The nine bits of everything below a folder."""
    return {str(path.relative_to(folder)): path.lstat().st_mode & 0o777 for path in sorted(folder.rglob("*"))}


def open_to_others(folder: Path) -> dict[str, str]:
    """What gives its group or others anything."""
    return {name: f"{mode:03o}" for name, mode in modes(folder).items() if mode & 0o077}
