"""Room on the primary's disk, when it is short: the log's oldest segments go first, then the app's WAL is cut.

The log is the primary's own, and followers that it does not reach any more have other ways. The app's WAL can begin
anew only once it was captured and copied back, which the anchor keeps the app from doing: so the primary does it.
"""

from __future__ import annotations

import logging
import time

from walcast.errors import DiskFull, Exhausted, Unavailable
from walcast.rarely import Rarely
from walcast.shortage import free_bytes, out_of_descriptors
from walcast_primary.checkpoint.checkpointer import Checkpointer
from walcast_primary.transaction_log.transaction_log import TransactionLog

log = logging.getLogger("walcast.primary")

LOW_BYTES = 8 << 20  # twice what a segment of the log is allocated by: with less the next commits may have no room
AGAIN_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # between two comparisons of all pages that fail


class Relief:
    """Of one database, for its capture thread."""

    def __init__(self, name: str, transactions: TransactionLog, checkpointer: Checkpointer) -> None:
        self._name = name
        self._log = transactions
        self._directory = str(transactions.directory)
        self._checkpointer = checkpointer
        self._rarely = Rarely(log)
        self._failures = 0
        self._not_before_s = 0.0

    @property
    def _free_bytes(self) -> int | None:
        return free_bytes(self._directory, for_anybody=True)  # the app's user may be another

    def when_low(self, frames: int) -> None:
        """Called after each capture: keep a little room for the app and for the next entry, `frames` of the WAL being
        captured. The newest segment stays, whatever is free.
        """
        free = self._free_bytes
        if free is None or free >= LOW_BYTES:
            return
        while free is not None and free < LOW_BYTES and self.trim():
            free = self._free_bytes
        if free is not None and free < LOW_BYTES:
            self._checkpointer.give_back(frames)

    def trim(self, *, newest: bool = False) -> bool:
        """Delete the log's oldest segment; False when there is none to spare. `newest`: also the only one, which
        followers may be reading."""
        if not self._log.give_back(newest=newest):
            return False
        facts = {"database": self._name, "log_bytes": self._log.size_bytes}
        self._rarely.log(logging.WARNING, "the disk is full: the log was cut", "cut", facts)
        return True

    # While capture is suspended

    def suspended(self) -> None:
        """Another try failed."""
        wait_s = AGAIN_S[min(self._failures, len(AGAIN_S) - 1)]
        self._not_before_s = time.monotonic() + wait_s
        self._failures += 1

    def resumed(self) -> None:
        """Capture goes on."""
        self._failures = 0

    def may_resume(self, lacked: Unavailable | None) -> bool:
        """Is what was lacked there again, as far as can be told? All pages are read then: not in vain."""
        if time.monotonic() < self._not_before_s:
            return False
        if isinstance(lacked, DiskFull):
            free = free_bytes(self._log.directory)
            return free is None or free >= LOW_BYTES
        return not (isinstance(lacked, Exhausted) and out_of_descriptors())
