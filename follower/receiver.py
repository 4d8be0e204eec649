"""Bytes of the stream → transactions of a target. Sans-I/O on the network side: chunks in, commits out.

Two ways: `Receiver` commits every LTX file as it ends; with `until`, everything up to that TXID becomes one commit,
on top of what was already written in the open transaction (a fuzzy copy), and what comes after it is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.errors import Corrupt, Diverged
from walcast.position import Position

PAGES_AT_ONCE = 256


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
    transaction.
    """

    def __init__(self, target: Target, start: Position, *, until: int = 0) -> None:
        self.position = start
        self.done = False
        self._until = until
        self._target = target
        self._decoder = ltx.Decoder()
        self._header: ltx.Header | None = None
        self._pgnos: list[int] = []
        self._pages: list[bytes] = []

    def feed(self, data: bytes, ends: Sequence[int]) -> int:
        """The next bytes; LTX files end at `ends` in them. How many transactions were committed.

        Diverged when a transaction does not follow the position, Corrupt when it is not what it claims.
        """
        committed = 0
        view = memoryview(data)
        start = 0
        try:
            for end in (*ends, len(data)):
                if self.done:
                    break
                self._decoder.feed(view[start:end])
                committed += self._drain()
                start = end
        except BaseException:
            self._target.rollback()
            raise
        return committed

    def _drain(self) -> int:
        while (event := self._decoder.next_event()) is not None:
            if isinstance(event, ltx.Page):
                self._pgnos.append(event.pgno)
                self._pages.append(event.data)
                if len(self._pages) >= PAGES_AT_ONCE:
                    self._flush()
            elif isinstance(event, ltx.Header):
                self._begin(event)
            else:
                return self._end(event)
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
        self._header = header
        if not self._until:
            self._target.begin()

    def _flush(self) -> None:
        self._target.write_pages(self._pgnos, self._pages)
        self._pgnos, self._pages = [], []

    def _end(self, trailer: ltx.Trailer) -> int:
        header = self._header
        if header is None:
            raise Corrupt("an LTX file ended that did not begin")
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
