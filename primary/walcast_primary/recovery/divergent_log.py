"""What a deposed primary's log has after the fork, kept aside before the new history takes its place."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.discarded import Circumstances, Discarded, Kind, Saving, Summary, find_discarded, trees_of
from walcast.discarded.trees import TIMEOUT_S
from walcast.errors import Corrupt, LostContinuity
from walcast.position import Position
from walcast.statedir import state_dir
from walcast_primary.transaction_log.segment import READ_BYTES, Entry
from walcast_primary.transaction_log.transaction_log import Known, TransactionLog

log = logging.getLogger("walcast.discarded")


class ForkNotInLog(LostContinuity):
    """The log does not go on from the fork: what came after it cannot be told from here."""

    def __init__(self, fork: Position, known: Known) -> None:
        super().__init__(f"the log does not go on from {fork}: {known.value}")
        self.fork = fork
        self.known = known


def discard(
    transactions: TransactionLog, fork: Position, circumstances: Circumstances, *, tables_timeout_s: float = TIMEOUT_S
) -> Discarded | None:
    """Keep every entry after `fork`, the last position both histories share, in a folder of `discarded/`; None when
    there is none. Nobody appends to the log meanwhile, and the database is as its last entry left it.

    Kept before: the folder from then. Raises ForkNotInLog, Corrupt for an entry that is not what was written, and
    Unavailable for a full disk; nothing is kept then.
    """
    end = transactions.position
    known = transactions.knows(fork)
    if known is not Known.YES or not fork:
        raise ForkNotInLog(fork, known if fork else Known.DIVERGED)
    if fork == end:
        return None
    state = state_dir(circumstances.database)
    summary = Summary(
        Kind.TRANSACTIONS,
        circumstances,
        trees_of(circumstances.database, tables_timeout_s),
        base=fork,
        end=end,
        term=transactions.term,
    )
    kept = find_discarded(state, summary.identity)
    if kept is not None:
        log.info("what only this node had was kept before", extra={"folder": str(kept.path)})
        return kept
    with transactions.pin(), Saving(state, fork.txid + 1, end.txid, summary) as saving:
        for entry in _entries(transactions, fork, end):
            saving.add(entry.header(), partial(_copy, entry))
        return saving.finish()


def _entries(transactions: TransactionLog, fork: Position, end: Position) -> Iterator[Entry]:
    at = fork
    while at != end:
        entry = transactions.after(at.txid)
        if entry is None or entry.pre_checksum != at.checksum:
            raise Corrupt(f"{transactions.directory}: the log breaks off at {at}, it should reach {end}")
        yield entry
        at = entry.position


def _copy(entry: Entry, file: BinaryIO) -> NDArray[np.uint32]:
    """One entry as a file, in pieces, verified on the way. Answers its pages."""
    decoder = ltx.Decoder()
    pgnos: list[int] = []
    trailer: ltx.Trailer | None = None
    for start in range(0, entry.size, READ_BYTES):
        data = entry.read(start, READ_BYTES)
        file.write(data)
        decoder.feed(data)
        while (event := decoder.next_event()) is not None:
            if isinstance(event, ltx.Page):
                pgnos.append(event.pgno)
            elif isinstance(event, ltx.Trailer):
                trailer = event
    decoder.close()
    if trailer is None or trailer.post_checksum != entry.post_checksum:
        raise Corrupt(f"{entry.segment.path}: TXID {entry.max_txid} is not what was written")
    return np.array(pgnos, np.uint32)
