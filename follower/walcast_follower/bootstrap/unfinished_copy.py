"""A copy that broke off: what came of it stays in the state folder, and the next try fetches only what differs.

So a copy over a line that breaks again and again gets further each time, also across restarts of this process, and
though the primary's log has moved on: a page that changed meanwhile differs, and the stream over the last try makes one
state of them all.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from walcast.errors import DiskFull, Unavailable
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.partial_copy import PartialCopy, Stopping, never, partial_path, partial_sizes
from walcast_follower.subscribe.partial_transaction import PartialTransaction
from walcast_follower.subscribe.primary_client import OtherPageSize

log = logging.getLogger("walcast.follower")


class Unfinished:
    """Of one follower; `partial` is what is open."""

    def __init__(self, state_dir: Path) -> None:
        self.partial: PartialCopy | None = None
        self._state_dir = state_dir
        self._all_came = False
        self._received_bytes = 0  # by copies that are closed

    @property
    def received_bytes(self) -> int:
        """What copies have brought in the life of this process."""
        return self._received_bytes + (self.partial.written_bytes if self.partial is not None else 0)

    def find(self, page_size: int = 0, stopping: Stopping = never) -> PartialCopy | None:
        """What an earlier try left, of pages of this size; 0: of any, the newest. Every page of it is read, unless it
        has been open since."""
        self._all_came = False  # of the try that begins
        open_already = self.partial
        if open_already is not None and open_already.is_open and page_size in (0, open_already.page_size):
            return open_already
        self.close()
        sizes = [size for size in partial_sizes(self._state_dir) if page_size in (0, size)]
        if sizes:
            self.partial = PartialCopy.open(self._state_dir, sizes[0], stopping)
        return self.partial

    def begin(self, page_size: int) -> PartialCopy:
        """What `find` has found, or a new one; what is of another page size goes."""
        if self.partial is None or not self.partial.is_open or self.partial.page_size != page_size:
            self.close()
            self.partial = PartialCopy.open(self._state_dir, page_size)
        for size in partial_sizes(self._state_dir):
            if size != page_size:
                partial_path(self._state_dir, size).unlink(missing_ok=True)
        return self.partial

    def take_begun(self, begun: PartialTransaction, applier: Applier) -> None:
        """A copy takes the place of a stream that broke off inside a transaction: what came of that stays of use. For
        a thread."""
        if begun.size:
            partial = self.find(applier.page_size) or self.begin(applier.page_size)
            with suppress(Unavailable):
                begun.give_pages(partial, applier.commit_pages)
            begun.clear()

    def all_came(self) -> None:
        """What fails from here on is not for want of room for the pages of the copy itself."""
        self._all_came = True

    def after(self, error: BaseException) -> None:
        """The copy failed. What came stays, but on a full disk, where it must make room, and where the primary has
        pages of another size."""
        partial = self.partial
        if self._all_came:
            self.close()  # whoever opens it again reads what is really there
        elif partial is not None and isinstance(error, OtherPageSize | DiskFull):
            self.close()
            partial.discard()

    def close(self) -> None:
        """It stays, for the next process."""
        partial, self.partial = self.partial, None
        if partial is not None:
            self._received_bytes += partial.written_bytes
            partial.close()

    def discard(self) -> None:
        """Nothing is left to be gone on with."""
        self.close()
        for size in partial_sizes(self._state_dir):
            partial_path(self._state_dir, size).unlink(missing_ok=True)
