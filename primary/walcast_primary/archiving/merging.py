"""Log entries → one archived LTX file: the newest version of each page, in the blocks that are already compressed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import lz4.block

from walcast import ltx
from walcast.errors import Corrupt
from walcast_primary.archiving.compaction import Written
from walcast_primary.transaction_log.segment import Entry

_PREFIX_BYTES = 10  # page number, flags, size: before each block of an entry


def merge(entries: Sequence[Entry], write: Callable[[bytes], object]) -> Written:
    """Write the file that takes a database over all of `entries` (contiguous) at once, in Litestream's form.

    Litestream refuses database checksums in the header and trailer, so they are left out there, and the one after the
    file stands in the reserved bytes. Memory: one entry streams through; of several, some hundred bytes a page, and
    the blocks that count are read again. Corrupt when the log is not what was written to it.
    """
    last = entries[-1].header()
    header = ltx.Header(
        page_size=last.page_size,
        commit_pages=last.commit_pages,
        min_txid=entries[0].min_txid,
        max_txid=entries[-1].max_txid,
        timestamp_ms=last.timestamp_ms,
        flags=ltx.FLAG_NO_CHECKSUM,
        database_checksum=entries[-1].post_checksum,
        term=last.term,
    )
    encoder = ltx.Encoder(header, write)
    if len(entries) == 1:
        for page in entries[0].pages():
            encoder.add_block(page.pgno, page.block, page.data)
    else:
        _merge_several(entries, header, encoder)
    return Written(header, encoder.finish())


def _merge_several(entries: Sequence[Entry], header: ltx.Header, encoder: ltx.Encoder) -> None:
    newest: dict[int, tuple[int, int, int, int]] = {}  # pgno → entry, offset and size of its block, CRC-32
    for number, entry in enumerate(entries):
        offset = ltx.HEADER_SIZE
        for page in entry.pages():
            size = len(page.block)
            newest[page.pgno] = (number, offset + _PREFIX_BYTES, size, zlib.crc32(page.block))
            offset += _PREFIX_BYTES + size
    for pgno in sorted(pgno for pgno in newest if pgno <= header.commit_pages):
        number, offset, size, crc = newest[pgno]
        block = entries[number].read(offset, size)
        if zlib.crc32(block) != crc:
            raise Corrupt(f"{entries[number].segment.path}: page {pgno} changed while it was read")
        encoder.add_block(pgno, block, lz4.block.decompress(block, uncompressed_size=header.page_size))
