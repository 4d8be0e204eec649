"""An archive that went on without this primary: another node was promoted while this one was away.

A primary whose database was restored to an older state goes on behind what the archive has, since that was asked for.
One that comes back, and was not told yet that it is not the primary any longer, must not: its database would be the
newest state of the archive, and the next restore would lose what the new primary has archived. The two differ in what
the archive has of the log: whoever archived in it before did not restore since.
"""

from __future__ import annotations

from collections.abc import Sequence

from walcast.archive import ArchiveFile
from walcast.archive.reading import read_headers
from walcast.errors import Stopped
from walcast.ltx import Header
from walcast.position import Position, format_txid
from walcast.store import Store
from walcast.terms import TERM_TXIDS
from walcast_primary.archiving.lineage import newest_txid
from walcast_primary.database import Database
from walcast_primary.transaction_log.transaction_log import Known

LATER_TERM_TXIDS = TERM_TXIDS // 2  # the gap before a term, less what a deposed primary may have had beyond its fork
PROOF_FILES = 100


def check_not_gone_on(database: Database, store: Store, files: Sequence[ArchiveFile]) -> None:
    """Stopped when the archive is in a later term than this primary, which archived in it before."""
    newest, position = newest_txid(files), database.log.position
    if newest < position.txid + LATER_TERM_TXIDS or not _has_archived(database, store, files):
        return
    raise Stopped(
        f"the archive {store.url} is at TXID {format_txid(newest)}, of a later term than {database.path}, which is at "
        f"{format_txid(position.txid)}: another node was promoted meanwhile, and nothing is archived from here; start "
        "this node as its follower (walcast follower DB --primary HOST:PORT), or start it once with "
        "--continue-archive to go on with what it has"
    )


def _has_archived(database: Database, store: Store, files: Sequence[ArchiveFile]) -> bool:
    """Is a state that its log went through the end of a file of the archive?"""
    log = database.log
    within = [file for file in files if log.first.txid < file.max_txid <= log.position.txid]
    newest = sorted(within, key=lambda file: -file.max_txid)[:PROOF_FILES]
    headers = [header for header in read_headers(store, newest) if isinstance(header, Header)]
    states = [Position(header.max_txid, header.database_checksum) for header in headers if header.database_checksum]
    return any(log.knows(state) is Known.YES for state in states)
