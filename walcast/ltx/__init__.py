"""LTX version 3, as Litestream 0.5 writes it (superfly/ltx: `ltx.go`, `encoder.go`, `decoder.go`). Bytes in, bytes out.

    header, 100 bytes       0  magic "LTX1"           32  timestamp, ms, i64      72  node id, u64
    (big-endian)            4  flags, u32             40  pre-apply checksum, u64 80  walcast: database checksum, u64
                            8  page size, u32         48  WAL offset, i64         88  walcast: term, u32
                           12  commit, pages, u32     56  WAL size, i64           92  walcast: checksum-1 and -2 of the
                           16  min TXID, u64          64  WAL salt-1, u32             last WAL frame covered, u32 each
                           24  max TXID, u64          68  WAL salt-2, u32
    page, ascending pgno    0  pgno, u32            4  flags, u16: 1 = LZ4 block    6  block size, u32    10  LZ4 block
                            0  pgno, u32            4  flags, u16: 0 = LZ4 frame    6  LZ4 frame          (older files)
    end of pages            0  six zero bytes
    page index              uvarints: pgno, offset, size of every page as stored, prefix included; then one 0
                            u64: bytes of the index up to here
    trailer, 16 bytes       0  post-apply checksum, u64    8  file checksum, u64

A file takes a database from min TXID - 1 to max TXID. One that begins at TXID 1 is a snapshot: it has every page from 1
to `commit_pages`; any other has the pages that changed. The lock page at 1 GiB is in none. The file checksum is
CRC-64/GO-ISO, top bit set, over everything before it with the pages *uncompressed*: other LZ4 bytes for the same pages
are the same file. With FLAG_NO_CHECKSUM both database checksums are zero; otherwise they have the top bit set, and a
snapshot's post-apply checksum is the XOR of its page checksums. Offsets 80 to 100 are reserved: others write zeros.

`Encoder` raises ValueError for what must not be written. `Decoder` answers an event, or None for "need more", or
raises Corrupt; the pages it has handed out are proven only when it has answered the `Trailer`. What it holds is bounded
by what was fed, plus some 8 bytes a page; no size is believed before it is compared with what the page size allows.

    header.py      Header, and the names of files
    body.py        Page, Trailer, and the rules for pages that writing and reading share
    encoder.py     Encoder
    decoder.py     Decoder
    page_index.py  the page index, read from the tail of a file
"""

from walcast.ltx.body import Page, Trailer, block_max_bytes
from walcast.ltx.decoder import Decoder, decode_file
from walcast.ltx.encoder import Encoder
from walcast.ltx.header import (
    FLAG_NO_CHECKSUM,
    HEADER_SIZE,
    PAGE_HEADER_SIZE,
    TRAILER_SIZE,
    Buffer,
    Header,
    format_filename,
    parse_filename,
)
from walcast.ltx.page_index import decode_page_index, page_index_size

__all__ = [
    "FLAG_NO_CHECKSUM",
    "HEADER_SIZE",
    "PAGE_HEADER_SIZE",
    "TRAILER_SIZE",
    "Buffer",
    "Decoder",
    "Encoder",
    "Header",
    "Page",
    "Trailer",
    "block_max_bytes",
    "decode_file",
    "decode_page_index",
    "format_filename",
    "page_index_size",
    "parse_filename",
]
