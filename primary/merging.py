"""Log entries → one archived LTX file: the newest version of each page, in the blocks that are already compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lz4.block

from primary.compaction import Written
from primary.segment import Entry
from walcast import ltx


def merge(entries: Sequence[Entry], write: Callable[[bytes], object]) -> Written:
    """Write the file that takes a database over all of `entries` (contiguous) at once, in Litestream's form.

    Litestream refuses database checksums in the header and trailer, so they are left out there, and the one after the
    file stands in the reserved bytes. Memory: one entry streams through; several are held compressed.
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
        blocks: dict[int, bytes] = {}
        for entry in entries:
            for page in entry.pages():
                blocks[page.pgno] = bytes(page.block)
        for pgno in sorted(p for p in blocks if p <= header.commit_pages):
            block = blocks[pgno]
            encoder.add_block(pgno, block, lz4.block.decompress(block, uncompressed_size=header.page_size))
    return Written(header, encoder.finish())
