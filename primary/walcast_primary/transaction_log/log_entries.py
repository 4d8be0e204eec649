"""Pages → one durable entry of the log: the only place where captured pages are encoded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.checksum import page_checksum
from walcast_primary.transaction_log.transaction_log import TransactionLog


def append_entry(
    log: TransactionLog,
    header: ltx.Header,
    pgnos: NDArray[np.uint32],
    page: Callable[[int], ltx.Buffer],
    marks: bytes = b"",
) -> None:
    """Log the pages `pgnos` (ascending, distinct); `page(i)` answers the bytes of `pgnos[i]` and is called in order.
    `marks` is the table of commit marks (`segment.encode_marks`) of an entry that groups several commits.

    Nothing has happened when this raises: OSError when the disk is full or gone.
    """
    checksums = log.checksums
    assert checksums is not None
    writer = log.writer(header.min_txid)
    sums = np.empty(len(pgnos), np.uint64)
    try:
        encoder = ltx.Encoder(header, writer.write)
        for i, pgno in enumerate(pgnos.tolist()):
            data = page(i)
            sums[i] = page_checksum(pgno, data)
            encoder.add(pgno, data)
        trailer = encoder.finish(checksums.after(pgnos, sums, header.commit_pages))
        writer.finish(header, trailer.size, marks)
    except BaseException:
        log.abandon()
        raise
    log.append(header, trailer, pgnos, sums, len(marks))
