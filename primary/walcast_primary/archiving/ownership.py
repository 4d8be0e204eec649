"""An archive belongs to one database: found out before the first upload, and again while uploading.

Two databases in one archive would leave nothing of either that can be restored. Where the store honours preconditions
one of two primaries that begin at the same time gets the archive, and the other uploads nothing. Where it ignores them
`claim_archive` waits for a moment to see whether another wrote after this one. What gets through that all the same, or
was changed by an operator, is noticed within CHECK_EVERY_S of uploading. An idle archive is not asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from walcast.archive import list_files
from walcast.archive.identity import KEY, SETTLE_S, claim_archive, read_archive_id, take_over_archive
from walcast.archive.reading import read_headers
from walcast.errors import ConfigError, Corrupt, Unavailable
from walcast.identity import DatabaseId, OtherDatabase, make_database_id
from walcast.ltx import Header
from walcast.position import Position
from walcast.store import Store
from walcast_primary.archiving.lineage import archive_end
from walcast_primary.database import Database
from walcast_primary.transaction_log.transaction_log import Known

log = logging.getLogger("walcast.archive")

CHECK_EVERY_S = 20.0
WATCH_S = CHECK_EVERY_S + 5.0
PROOF_FILES = 100
FIRST_TXID = 1


class Ownership:
    """One database's hold on its archive. `lost` says that the archive was found to be another database's.

    A database without an id owns nothing and asks nothing. `take_over`: the archive is to be this database's,
    whosever it was before; `take_empty`: if there is nothing in it but the name of the other one, as after a first boot
    that ended before its first upload.
    """

    def __init__(self, store: Store, database: Database, *, take_over: bool = False, take_empty: bool = False) -> None:
        self.lost: OtherDatabase | None = None
        self._store = store
        self._database = database
        self._take_over = take_over
        self._take_empty = take_empty
        self._checked_s = -CHECK_EVERY_S

    def claim(self, wait: Callable[[float], object]) -> None:
        """Before anything is uploaded. OtherDatabase when the archive belongs to another one. What `wait` answers is
        true when the wait was broken off."""
        mine = self._database.id
        if mine is None:
            return
        if self._take_over:
            take_over_archive(self._store, mine)
            self._take_over = False
        found = claim_archive(self._store, mine, wait)
        if found != mine and self._take_empty:
            found = self._taken_if_empty(mine, found, wait)
        self._judge(mine, found)

    def _taken_if_empty(self, mine: DatabaseId, theirs: DatabaseId, wait: Callable[[float], object]) -> DatabaseId:
        """Whose it is then. A primary that has just made it its own uploads within WATCH_S; one that did so before that
        asks before it uploads."""
        if list_files(self._store):
            return theirs
        named = next((one.timestamp_ms for one in self._store.list(KEY) if one.key == KEY), None)
        age_s = 0.0 if named is None else time.time() - named / 1000
        left_s = min(WATCH_S, max(0.0, WATCH_S - age_s))
        facts = {"url": self._store.url, "id": theirs, "seconds": round(left_s, 1)}
        log.warning("the archive is another database's but is empty; it is taken over if it stays empty", extra=facts)
        if wait(left_s) or list_files(self._store) or read_archive_id(self._store) != theirs:
            return theirs
        take_over_archive(self._store, mine)
        wait(SETTLE_S)
        return read_archive_id(self._store) or theirs

    def check(self, *, older_than_s: float = CHECK_EVERY_S) -> None:
        """While uploading: ask again when the last answer is older. OtherDatabase as above, and each time after that
        until the archive is found to be this database's again."""
        mine = self._database.id
        if mine is None or (self.lost is None and time.monotonic() - self._checked_s < older_than_s):
            return
        self._judge(mine, claim_archive(self._store, mine))

    def _judge(self, mine: DatabaseId, found: DatabaseId) -> None:
        self._checked_s = time.monotonic()
        self.lost = None if found == mine else other_database(self._database.path, self._store, mine, found)
        if self.lost is not None:
            raise self.lost


def other_database(path: Path, store: Store, mine: DatabaseId | None, theirs: DatabaseId) -> OtherDatabase:
    """What is wrong, and what to do."""
    what = f"has the id {mine}" if mine is not None else "has no id, and the archive does not show that it is that one"
    return OtherDatabase(
        f"the archive {store.url} belongs to the database {theirs}, and {path} {what}: give it another URL, or move "
        f"that archive away; or restore that database here first (walcast restore {store.url} -o DB); or, if you know "
        "that the archive is to go on with this database, start it once with --continue-archive",
        mine=mine or "",
        theirs=theirs,
    )


def find_owner(store: Store) -> DatabaseId | None:
    """Whose archive it is, asked when a database is opened; None also when the store cannot be asked now: the archiver
    asks again before it uploads, and says so meanwhile. ConfigError when the object is damaged."""
    try:
        return read_archive_id(store)
    except Corrupt as error:
        raise ConfigError(str(error)) from error
    except (Unavailable, ConfigError) as error:
        log.warning("cannot tell whose archive it is", extra={"url": store.url, "error": str(error)})
        return None


def identify(
    database: Database,
    store: Store | None,
    owner: DatabaseId | None,
    *,
    take_over: bool = False,
    take_empty: bool = False,
) -> None:
    """See that a captured database has an id: its own, the archive's if it is on the archive's history, or a new one.

    OtherDatabase when the archive's `owner` is another one. With `take_over` that is no obstacle: a database without an
    id gets the owner's, one with an id gets the archive (`Ownership`). `take_empty` is as there.
    """
    mine = database.id
    if store is not None and owner is not None and owner != mine and not take_over:
        if take_empty and not list_files(store):
            owner = None  # the archiver takes it over
        elif mine is not None or not on_history(database, store):
            raise other_database(database.path, store, mine, owner)
        else:
            log.info("the database is the archive's", extra={"database": database.name, "url": store.url, "id": owner})
    if mine is None:
        database.identify(owner or make_database_id())


def on_history(database: Database, store: Store) -> bool:
    """Is the database, whose log was just brought up to date, on the history that is in the archive?

    It is when it is in the archive's newest state, or when its log has been in a state that the archive has. The first
    state of a history does not count: two databases that an app has just created are alike, byte for byte.
    """
    transactions = database.log
    files = list_files(store)
    end = archive_end(store, files)
    mine = (transactions.position.checksum, transactions.first.checksum)
    if end is not None and end.txid > FIRST_TXID and end.checksum in mine:
        return True
    newest = sorted(
        (file for file in files if transactions.first.txid < file.max_txid <= transactions.position.txid),
        key=lambda file: -file.max_txid,
    )
    headers = [header for header in read_headers(store, newest[:PROOF_FILES]) if isinstance(header, Header)]
    states = [Position(header.max_txid, header.database_checksum) for header in headers if header.database_checksum]
    return any(transactions.knows(state) is Known.YES for state in states)
