"""Several files of an archive → one that takes a database over all of them at once.

A merge by page number over streams: of every page the version of the last file that has it. Memory is a window of each
input, WINDOW_BYTES in all, whatever their size. That a database which shrank and grew again has written all pages
beyond its smaller size is what capture sees to (`capture.py`, `unwritten_pages`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from walcast import ltx
from walcast.archive import ArchiveFile
from walcast.archive.damage import check_header
from walcast.errors import Corrupt
from walcast.position import format_txid
from walcast.restore.pages import FilePages
from walcast.store import Store

WINDOW_BYTES = 16 << 20
PIECE_MIN_BYTES = 64 << 10
PIECE_MAX_BYTES = 1 << 20
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Written:
    """An LTX file that was written: what reading it back must show."""

    header: ltx.Header
    trailer: ltx.Trailer


def compact(
    store: Store,
    inputs: Sequence[ArchiveFile],
    write: Callable[[bytes], object],
    tick: Callable[[], None] = lambda: None,
) -> Written:
    """Merge contiguous `inputs` (each begins at or before the TXID after the one before), in Litestream's form.

    `tick` is called now and then; what it raises ends the work. Raises Corrupt when an input is not what it must be,
    and what the store raises. What was written is proven only when this returns.
    """
    piece = max(PIECE_MIN_BYTES, min(PIECE_MAX_BYTES, WINDOW_BYTES // len(inputs)))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="walcast-compact") as pool:
        first = list(pool.map(lambda file: store.get(file.key, 0, piece), inputs))
    streams = [_Input(store, file, data, piece) for file, data in zip(inputs, first, strict=True)]
    headers = [stream.header() for stream in streams]
    _check_contiguous(headers)
    last = headers[-1]
    header = ltx.Header(
        page_size=last.page_size,
        commit_pages=last.commit_pages,
        min_txid=headers[0].min_txid,
        max_txid=last.max_txid,
        timestamp_ms=last.timestamp_ms,
        flags=ltx.FLAG_NO_CHECKSUM,
        database_checksum=last.database_checksum,
        term=last.term,
    )
    encoder = ltx.Encoder(header, write)
    held: ltx.Page | None = None
    merged = heapq.merge(*(stream.pages(order) for order, stream in enumerate(streams)), key=lambda item: item[:2])
    for count, (_, _, page) in enumerate(merged):
        if count % 256 == 0:
            tick()
        if held is not None and held.pgno != page.pgno:
            _add(encoder, header, held)
        held = page
    if held is not None:
        _add(encoder, header, held)
    return Written(header, encoder.finish())


def prove(
    store: Store, key: str, written: Written | None = None, tick: Callable[[], None] = lambda: None
) -> ltx.Header:
    """Read a file back, whole: Corrupt when it is not what it claims to be, or not what was `written`."""
    pages = FilePages(lambda header, batch: None)
    for chunk in store.chunks(key):
        tick()
        pages.feed(chunk)
    trailer = pages.finish()
    assert pages.header is not None  # `finish` says so
    if written is not None and (pages.header, trailer) != (written.header, written.trailer):
        raise Corrupt(f"{key} in {store.url} is not what was written there")
    return pages.header


class _Input:
    """One input, read piece by piece."""

    def __init__(self, store: Store, file: ArchiveFile, first: bytes, piece_bytes: int) -> None:
        self._store = store
        self._file = file
        self._piece_bytes = piece_bytes
        self._read = len(first)
        self._decoder = ltx.Decoder()
        self._decoder.feed(first)

    def header(self) -> ltx.Header:
        header = self._decoder.next_event()
        if not isinstance(header, ltx.Header):
            raise Corrupt(f"{self._file.key} in {self._store.url} has no LTX header")
        check_header(header, self._file)
        return header

    def pages(self, order: int) -> Iterator[tuple[int, int, ltx.Page]]:
        """(pgno, `order`, page), ascending; Corrupt unless the file is whole and proven when it ends."""
        try:
            while True:
                while (event := self._decoder.next_event()) is not None:
                    if isinstance(event, ltx.Page):
                        yield event.pgno, order, event
                if self._read >= self._file.size or self._decoder.unused:
                    break
                data = self._store.get(self._file.key, self._read, self._piece_bytes)
                if not data:
                    break
                self._read += len(data)
                self._decoder.feed(data)
            self._decoder.close()
            if self._decoder.unused:
                raise Corrupt("more bytes after the trailer")
        except Corrupt as error:
            raise Corrupt(f"{self._file.key} in {self._store.url}: {error}") from error


def _check_contiguous(headers: Sequence[ltx.Header]) -> None:
    for before, after in pairwise(headers):
        if after.page_size != before.page_size:
            raise Corrupt(f"page size {after.page_size} after {before.page_size} in one archive")
        if not (before.min_txid <= after.min_txid <= before.max_txid + 1 and before.max_txid < after.max_txid):
            raise Corrupt(
                f"TXIDs from {format_txid(after.min_txid)} to {format_txid(after.max_txid)} do not continue those "
                f"up to {format_txid(before.max_txid)}"
            )


def _add(encoder: ltx.Encoder, header: ltx.Header, page: ltx.Page) -> None:
    if page.pgno > header.commit_pages:
        return  # cut off later in the range
    if page.block:
        encoder.add_block(page.pgno, page.block, page.data)
    else:
        encoder.add(page.pgno, page.data)
