"""Page 1 of a replica: what SQLite and walcast read from it before anything else, checked before it becomes visible.

A page 1 of another format would make every reader fail, and one that is not in WAL mode would have them read a file
that the applier's transactions are not in yet (SQLite's file format, "The Database Header").
"""

from __future__ import annotations

import struct

from walcast.errors import ProtocolViolation
from walcast.filesystem import SQLITE_MAGIC
from walcast.wal_writer import Page

_HEADER = struct.Struct(">16sHBB")
_COUNTS = struct.Struct(">II")  # of changes, and of pages
_VERSION_VALID_FOR = struct.Struct(">I")
_WAL_VERSION = 2


def check_page_one(page: Page, page_size: int, commit_pages: int | None = None) -> None:
    """ProtocolViolation for what cannot be page 1 of a database in WAL mode with such pages.

    `commit_pages` is None where page 1 is of another moment than the size: in a copy, before the stream is applied.
    """
    magic, stored_size, write_version, read_version = _HEADER.unpack_from(page)
    if magic != SQLITE_MAGIC:
        raise ProtocolViolation(f"page 1 is not that of a SQLite database: it begins with {magic.hex()}")
    if (65536 if stored_size == 1 else stored_size) != page_size:
        raise ProtocolViolation(f"page 1 says that pages have {stored_size} bytes, and they have {page_size}")
    if (write_version, read_version) != (_WAL_VERSION, _WAL_VERSION):
        raise ProtocolViolation(
            f"page 1 is not that of a database in WAL mode: its versions are {write_version} and {read_version}"
        )
    if commit_pages is None:
        return
    changes, pages = _COUNTS.unpack_from(page, 24)
    if changes == _VERSION_VALID_FOR.unpack_from(page, 92)[0] and pages > commit_pages:  # as SQLite looks at it
        raise ProtocolViolation(f"page 1 says that the database has {pages} pages, and it has {commit_pages}")
