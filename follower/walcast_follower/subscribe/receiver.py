"""Bytes of the stream → transactions of a target. Sans-I/O on the network side: chunks in, commits out.

Two ways: `Receiver` commits every LTX file as it ends; with `until`, everything up to that TXID becomes one commit,
on top of what was already written in the open transaction (a fuzzy copy), and what comes after it is not taken.

What a primary says is checked before the target gets it: sizes that its pages do not bear out, TXIDs, terms and times
that cannot be, and pages that no database has are a ProtocolViolation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.errors import Corrupt, Diverged, ProtocolViolation
from walcast.position import Position
from walcast_follower.apply.page_one import check_page_one
from walcast_follower.subscribe.message_checks import check_ends, check_transaction
from walcast_follower.subscribe.page_growth import Growth

PAGES_AT_ONCE = 256
GROWTH_ASKED_BYTES = 16 << 20  # a database that grows by more needs the room for it before the first page is taken


class Target(Protocol):
    """What takes transactions: the applier of a live replica, or a file that is not there yet."""

    position: Position
    page_size: int
    term: int

    def begin(self) -> None: ...
    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None: ...
    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None: ...
    def rollback(self) -> None: ...


class Receiver:
    """Feeds a target. After any error the target is rolled back, and this object is of no more use.

    `position` is the end of the last whole LTX file received: committed, or with `until` still part of the open
    transaction. `pages` is the size of the database at `start`, `term` that of the primary, and `has_room` is asked,
    and raises DiskFull, before the first new page is written of a database that grows by as many bytes as it is given.
    """

    def __init__(
        self,
        target: Target,
        start: Position,
        *,
        pages: int,
        term: int,
        until: int = 0,
        has_room: Callable[[int], None] | None = None,
    ) -> None:
        self.position = start
        self.done = False
        self._until = until
        self._target = target
        self._term = term
        self._growth = Growth(target.page_size, pages)
        self._has_room = has_room
        self._decoder = ltx.Decoder()
        self._header: ltx.Header | None = None
        self._pgnos: list[int] = []
        self._pages: list[bytes] = []

    def feed(self, data: bytes, ends: Sequence[int]) -> int:
        """The next bytes; LTX files end at `ends` in them. How many transactions were committed.

        Diverged when a transaction does not follow the position, Corrupt when it is not what it claims,
        ProtocolViolation when it says what cannot be.
        """
        committed = 0
        view = memoryview(data)
        start = 0
        try:
            check_ends(ends, len(data))
            for end in ends:
                if self.done:
                    return committed
                committed += self._take(view[start:end], ends=True)
                start = end
            if not self.done and start < len(data):
                self._take(view[start:], ends=False)
        except BaseException:
            self._target.rollback()
            raise
        return committed

    def _take(self, data: memoryview, *, ends: bool) -> int:
        self._decoder.feed(data)
        while (event := self._decoder.next_event()) is not None:
            if isinstance(event, ltx.Page):
                self._check_page(event)
                self._pgnos.append(event.pgno)
                self._pages.append(event.data)
                if len(self._pages) >= PAGES_AT_ONCE:
                    self._flush()
            elif isinstance(event, ltx.Header):
                self._begin(event)
            else:
                if not ends or self._decoder.unused:
                    raise ProtocolViolation("a transaction ended where none was said to end")
                return self._end(event)
        if ends:
            raise ProtocolViolation("a transaction did not end where it was said to end")
        return 0

    def _begin(self, header: ltx.Header) -> None:
        expected = self.position
        if header.min_txid != expected.txid + 1 or header.pre_checksum != expected.checksum:
            came = Position(header.min_txid - 1, header.pre_checksum)
            raise Diverged(f"a transaction that continues {came} came to a replica at {expected}")
        if header.page_size != self._target.page_size:
            raise Diverged(f"page size {header.page_size}, the replica has {self._target.page_size}")
        if header.term < self._target.term:
            raise Diverged(f"a transaction of term {header.term} came to a replica of term {self._target.term}")
        check_transaction(header, self._term)
        self._header = header
        if not self._until:
            self._target.begin()

    def _check_page(self, page: ltx.Page) -> None:
        header, growth = self._header, self._growth
        if header is None:
            raise Corrupt("a page came without a transaction")
        if page.pgno > growth.pages:
            first = growth.reached_pages == growth.pages
            growth.add(page.pgno)
            grown_bytes = (header.commit_pages - growth.pages) * header.page_size
            if first and self._has_room is not None and grown_bytes > GROWTH_ASKED_BYTES:
                self._has_room(grown_bytes)
        elif page.pgno == 1:
            check_page_one(page.data, self._target.page_size, header.commit_pages)

    def _flush(self) -> None:
        self._target.write_pages(self._pgnos, self._pages)
        self._pgnos, self._pages = [], []

    def _end(self, trailer: ltx.Trailer) -> int:
        header = self._header
        if header is None:
            raise Corrupt("an LTX file ended that did not begin")
        self._growth.finish(header.commit_pages)
        if self._pgnos:
            self._flush()
        self._decoder.close()
        self._decoder, self._header = ltx.Decoder(), None
        self.position = Position(header.max_txid, trailer.post_checksum)
        if header.max_txid < self._until:
            return 0
        self._target.commit(header.term, self.position, header.commit_pages, header.timestamp_ms)
        self.done = bool(self._until)
        return header.max_txid - header.min_txid + 1
