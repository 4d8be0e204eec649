"""The pages of a copy, from its messages into a target."""

from __future__ import annotations

import lz4.block

from walcast.errors import Corrupt
from walcast.rpc import replication_pb2 as pb
from walcast_follower.apply.page_one import check_page_one
from walcast_follower.subscribe.message_checks import check_copied
from walcast_follower.subscribe.page_growth import Growth
from walcast_follower.subscribe.receiver import Target

WRITTEN_AT_ONCE_BYTES = 1 << 20  # a small message may hold very many pages of zeros


class Pieces:
    """Of one copy. `have_pages` is the size of the database that the target has already, pages."""

    def __init__(self, target: Target, start: pb.CopyStart, have_pages: int) -> None:
        self.written = 0
        self._target = target
        self._start = start
        self._last_pgno = 0
        self._growth = Growth(start.page_size, have_pages)
        self._at_once = max(1, WRITTEN_AT_ONCE_BYTES // start.page_size)

    def write(self, message: pb.CopyPages) -> None:
        """The next piece. Corrupt for a page that does not decompress, ProtocolViolation for what cannot be in this
        copy: of that piece nothing is decompressed or written."""
        check_copied(message, self._start, self._last_pgno)
        pgnos, sizes, blocks = list(message.pgnos), list(message.sizes), memoryview(message.blocks)
        for pgno in pgnos:
            self._growth.add(pgno)
        at = 0
        for first in range(0, len(pgnos), self._at_once):
            some = slice(first, first + self._at_once)
            pages: list[bytes] = []
            for size in sizes[some]:
                pages.append(self._decompressed(blocks[at : at + size]))
                at += size
            if pgnos[first] == 1:
                check_page_one(pages[0], self._start.page_size)
            self._target.write_pages(pgnos[some], pages)
        if pgnos:
            self._last_pgno = pgnos[-1]
            self.written += len(pgnos)

    def _decompressed(self, block: memoryview) -> bytes:
        page_size = self._start.page_size
        try:
            page: bytes = lz4.block.decompress(block, uncompressed_size=page_size)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise Corrupt(f"a page of a copy does not decompress: {error}") from error
        if len(page) != page_size:
            raise Corrupt(f"a page of a copy has {len(page)} bytes, not {page_size}")
        return page
