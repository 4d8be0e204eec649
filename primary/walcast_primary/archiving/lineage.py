"""Where an archive ends, and whether a log goes on from there. Two histories in one archive must never join."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from walcast.archive import ArchiveFile, plan_restore
from walcast.archive.reading import read_header
from walcast.errors import ConfigError, Corrupt, WalcastError
from walcast.position import Position, format_txid
from walcast.store import ObjectMissing, Store
from walcast.terms import JUMP_MOST
from walcast_primary.database import Database
from walcast_primary.transaction_log.transaction_log import Known

log = logging.getLogger("walcast.archive")


def archive_end(store: Store, files: Sequence[ArchiveFile]) -> Position | None:
    """Where the restorable chain ends; None when there is none, when it does not lead to the newest TXID, or when its
    last file is damaged. Litestream's files do not say a checksum: it is 0."""
    try:
        last = plan_restore(files)[-1]
    except WalcastError:
        return None
    if last.max_txid != newest_txid(files):
        return None
    try:
        header = read_header(store, last)
    except (Corrupt, ObjectMissing):
        return None
    return Position(last.max_txid, header.database_checksum)


def newest_txid(files: Sequence[ArchiveFile]) -> int:
    """The highest TXID of an archive; 0 when it is empty."""
    return max((file.max_txid for file in files), default=0)


def continues(database: Database, end: Position | None) -> bool:
    """Is the archive's end a position of this database's history, as far as the log can tell?"""
    if end is None or end.txid > database.log.position.txid:
        return False
    return database.log.knows(end) is not Known.DIVERGED


def begin_behind(database: Database, newest: int) -> None:
    """Go on with a TXID that leaves one out behind the archive's newest: TXIDs name files, and over a TXID that is only
    in a snapshot no chain leads from the one history to the other."""
    if newest - database.log.position.txid > JUMP_MOST:
        raise ConfigError(
            f"the archive names TXID {format_txid(newest)}, and this database is at "
            f"{format_txid(database.log.position.txid)}: no history is so far ahead; find out who put that file there, "
            "and remove it"
        )
    if newest >= database.log.position.txid:
        facts = {"archive_txid": newest, "txid": database.log.position.txid}
        log.warning("the archive has another history; going on behind it", extra=facts)
        database.loop.skip_to(newest + 1)
