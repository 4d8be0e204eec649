"""Writing an LTX file into an archive, never over another one."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from typing import BinaryIO

from walcast.archive import ArchiveFile, ltx_key
from walcast.errors import Corrupt, Unavailable, WalcastError
from walcast.store import ObjectExists, Store
from walcast_primary.archiving.compaction import Written, prove

_PROBE = ".walcast-probe"


def probe(store: Store) -> None:
    """Can the store be written to now? Asked before much work is done for it; no listing, and deleting is a favour."""
    store.put(_PROBE, b"walcast", timestamp_ms=time.time_ns() // 1_000_000)
    with suppress(WalcastError):
        store.delete([_PROBE])


def put_file(store: Store, level: int, written: Written, file: BinaryIO) -> ArchiveFile:
    """Put it under its name. Where there already is an object of that name it must lead to the same database.

    Raises Unavailable when it does not: somebody else archives there. A store that cannot tell writes over it.
    """
    header = written.header
    key = ltx_key(store, level, header.min_txid, header.max_txid)
    if file.seekable():
        file.seek(0, io.SEEK_SET)
    try:
        store.put(key, file, timestamp_ms=header.timestamp_ms, if_absent=True)
    except ObjectExists:
        # Ours, when the answer to an earlier put was lost; the same state in any case, or not ours at all.
        try:
            there = prove(store, key).database_checksum
        except Corrupt:
            if not file.seekable():
                raise
            file.seek(0, io.SEEK_SET)
            store.put(key, file, timestamp_ms=header.timestamp_ms)
            there = header.database_checksum
        if there != header.database_checksum:
            raise Unavailable(
                f"{key} is in {store.url} already, with another content: does another primary archive there?"
            ) from None
    return ArchiveFile(level, header.min_txid, header.max_txid, written.trailer.size, header.timestamp_ms, key)
