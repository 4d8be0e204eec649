"""A first copy that broke off: what came of it is kept, and the next try fetches only the pages that differ from it.

So a copy over a line that breaks again and again gets further each time, though the primary's log has moved on: a page
that changed meanwhile differs, and the stream over the last try makes one state of them all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from follower.applier import ChecksumMismatch
from follower.client import MustCopy
from follower.newfile import NewFile
from walcast.errors import Corrupt, DiskFull, ProtocolViolation, Unavailable
from walcast.rpc import replication_pb2 as pb

log = logging.getLogger("walcast.follower")


class Unfinished:
    """Of one follower. `file`: None while there is none."""

    def __init__(self) -> None:
        self.file: NewFile | None = None

    @property
    def checksums(self) -> NDArray[np.uint64] | None:
        """Of the pages that are there, page 1 first; None without any."""
        if self.file is None or not self.file.checksums.commit_pages:
            return None
        return self.file.checksums.pages[: self.file.checksums.commit_pages]

    @property
    def page_size(self) -> int:
        """0 without pages: any will do."""
        return self.file.page_size if self.file is not None and self.file.checksums.commit_pages else 0

    @property
    def pages(self) -> int:
        """How many there are."""
        return self.file.checksums.commit_pages if self.file is not None else 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While a copy goes on: what came is kept where the line or the log was to blame for its end."""
        try:
            yield
        except BaseException as error:
            self.after(error)
            raise
        self.file = None

    def go_on(self, path: Path, state_dir: Path, start: pb.CopyStart, mode: int) -> NewFile:
        """The file that the copy goes into: what is there, or a new one."""
        if self.file is None or self.file.page_size != start.page_size:
            self.discard()
            self.file = NewFile(path, state_dir, start.page_size, start.commit_pages, mode)
        else:
            self.file.go_on(start.commit_pages)
            log.info("a copy goes on where it broke off", extra={"pages": self.pages, "of": start.commit_pages})
        return self.file

    def after(self, error: BaseException) -> None:
        """The copy failed: keep what came if only the line or the log was to blame, else forget it. On a full disk it
        must make room."""
        if not may_go_on(error):
            self.discard()
        elif self.file is not None and not self.file.is_open:
            self.file = None

    def discard(self) -> None:
        """Remove what is there."""
        file, self.file = self.file, None
        if file is not None and file.is_open:
            file.rollback()


def may_go_on(error: BaseException) -> bool:
    """Does a copy that ended so leave pages that are worth keeping?"""
    if isinstance(error, DiskFull | ProtocolViolation):
        return False
    # A wrong page, of a byte that was damaged on its way, differs from the primary's and comes anew.
    return isinstance(error, Unavailable | MustCopy | Corrupt | ChecksumMismatch)
