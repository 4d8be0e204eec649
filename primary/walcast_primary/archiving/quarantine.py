"""Files of a history that is no more, out of the way of restores.

Between two terms lies a gap of TXIDs in which no file of the set's history ends (`walcast.terms`). One that does is a
deposed primary's: it was on its way when its time was over, or nobody could get it when the next one began. It goes to
`discarded/` in the archive, where no restore looks and nothing is ever deleted.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from typing import BinaryIO, cast

from walcast.archive import ArchiveFile
from walcast.errors import Corrupt, DiskFull
from walcast.shortage import check_free
from walcast.store import Store
from walcast.terms import TermStart

log = logging.getLogger("walcast.archive")

PREFIX = "discarded/"
SPOOL_BYTES = 8 << 20
SPARE_BYTES = 1 << 20


def of_no_history(files: Sequence[ArchiveFile], history: Sequence[TermStart]) -> list[ArchiveFile]:
    """Those that end inside a gap."""
    return [file for file in files if any(begun.start.txid < file.max_txid < begun.first_txid for begun in history)]


def set_aside(store: Store, files: Sequence[ArchiveFile], history: Sequence[TermStart], folder: str) -> None:
    """Move them; each is whole in its new place before it leaves the old one. One that is not what it was listed as, or
    that this disk has no room for, stays, and does no harm there: nothing goes on from it."""
    for file in of_no_history(files, history):
        try:
            check_free(folder, file.size + SPARE_BYTES)
        except DiskFull as error:
            log.warning("no room to set aside a file of no history", extra={"key": file.key, "error": str(error)})
            continue
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=folder) as spool:
            for chunk in store.chunks(file.key):
                spool.write(chunk)
                if spool.tell() > file.size:
                    raise Corrupt(f"{file.key} in {store.url} has more bytes than it was listed with")
            spool.seek(0)
            store.put(PREFIX + file.key, cast(BinaryIO, spool), timestamp_ms=file.timestamp_ms)
        store.delete([file.key])
        log.warning("set aside a file of a deposed primary", extra={"url": store.url, "key": PREFIX + file.key})
