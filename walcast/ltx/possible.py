"""What a file of a certain size can hold at most, whatever its header says. Pure.

An LZ4 block expands at most 255 times: a length is given in bytes that count up to 255 each. So a page takes at least a
255th of its size, its prefix, and three bytes in the page index (older files have no such prefix, and an LZ4 frame that
is larger). A header that announces more is damaged, or a lie, and is found out before anything is allocated for it.
"""

from __future__ import annotations

from walcast.checksum import lock_pgno
from walcast.errors import Corrupt
from walcast.ltx.body import PREFIX
from walcast.ltx.header import HEADER_SIZE, PAGE_HEADER_SIZE, TRAILER_SIZE, Header

TAIL_BYTES = 8 + TRAILER_SIZE  # the size of the page index, and the trailer
_INDEX_ENTRY_MIN = 3  # one byte each for page number, offset and size
_INDEX_ENTRY_MAX = 5 + 10 + 5
_INDEX_END = 1 + 8
_UNWRITTEN_MOST = 1 << 18  # what fits into a large page cache


def pages_max(page_size: int, file_bytes: int) -> int:
    """How many pages a file of so many bytes can have."""
    return max(0, file_bytes - HEADER_SIZE) // (PREFIX.size + -(-page_size // 255) + _INDEX_ENTRY_MIN)


def stored_max(page_size: int) -> int:
    """How many bytes one page takes in a file at most, with its prefix."""
    return PREFIX.size + page_size + page_size // 255 + 16


def end_min() -> int:
    """How many bytes come after no page at all."""
    return PAGE_HEADER_SIZE + _INDEX_END + TRAILER_SIZE


def end_max(pages: int) -> int:
    """How many bytes come after so many pages at most: their end, the page index, the trailer."""
    return PAGE_HEADER_SIZE + pages * _INDEX_ENTRY_MAX + _INDEX_END + TRAILER_SIZE


def snapshot_pages(header: Header) -> int:
    """How many pages a snapshot has: all but the lock page."""
    return header.commit_pages - (header.commit_pages >= lock_pgno(header.page_size))


def check_tail(header: Header, file_bytes: int, last: bytes) -> int:
    """How many bytes come after the pages of a file, as its last TAIL_BYTES say. Raises Corrupt when that cannot be."""
    found = PAGE_HEADER_SIZE + int.from_bytes(last[:8], "big") + TAIL_BYTES
    pages = min(snapshot_pages(header), pages_max(header.page_size, file_bytes))
    if len(last) != TAIL_BYTES or not end_min() <= found <= min(file_bytes - HEADER_SIZE, end_max(pages)):
        raise Corrupt(f"LTX file: a tail of {found} bytes in a file of {file_bytes}")
    return found


def check_pages(header: Header, file_bytes: int, pages_before: int = 0) -> None:
    """Raises ValueError when a database of `pages_before` pages cannot have the size that the header announces after a
    file of so many bytes: what a database grows by is in the file that it grows in.

    Files that say no database checksum, as Litestream's, may leave some out: SQLite never writes what a transaction
    frees again.
    """
    most = pages_max(header.page_size, file_bytes)
    if header.is_snapshot:
        pages = snapshot_pages(header)
    else:
        pages = header.commit_pages - pages_before
        most += 0 if header.database_checksum or not header.no_checksum else _UNWRITTEN_MOST
    if pages > most:
        raise ValueError(
            f"announces a database of {header.commit_pages:,} pages after {pages_before:,}, but {file_bytes:,} bytes "
            "cannot hold that"
        )
