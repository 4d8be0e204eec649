"""The database files that this process has open with SQLite.

SQLite's locks are POSIX locks: they belong to the process, and closing any descriptor of a file drops all that the
process holds on it. So whoever only wants to look into a file must know that nobody here holds it, also under another
name (links), and two `Database`s on one file would break each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Inode = tuple[int, int]


def inode_of(path: Path) -> Inode:
    """Device and number of the file, links followed. OSError."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino


class Inodes:
    """Those that are held. For all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Inode, str] = {}

    def hold(self, inode: Inode, name: str) -> str | None:
        """Reserve it, before it is opened, for the database `name`; answers who holds it already, if anybody does."""
        with self._lock:
            if inode in self._held:
                return self._held[inode]
            self._held[inode] = name
            return None

    def holder(self, inode: Inode) -> str | None:
        """The database that it is, if anybody holds it."""
        with self._lock:
            return self._held.get(inode)

    def let_go(self, inode: Inode) -> None:
        """It is closed."""
        with self._lock:
            self._held.pop(inode, None)

    @contextmanager
    def not_held(self, inode: Inode) -> Iterator[bool]:
        """Is nobody holding it? While this is open nobody begins to, either."""
        with self._lock:
            yield inode not in self._held
