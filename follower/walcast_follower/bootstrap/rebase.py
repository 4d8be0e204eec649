"""A replica that left the set's history, brought onto it from the archive alone: the primary that goes on with it may
be gone.

Laying the archive's files over such a replica cannot give the archive's state, since its own pages show through. So the
archive is restored beside it, and the pages that differ become one commit under its readers; what it had in their place
is kept first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from walcast.archive import ArchiveFile, list_files, plan_restore
from walcast.archive.damage import check_seen_term
from walcast.archive.identity import read_archive_id
from walcast.archive.reading import announced_bytes, read_header
from walcast.discarded import Circumstances
from walcast.errors import WalcastError
from walcast.identity import OtherDatabase, read_database_id
from walcast.restore import restore_to
from walcast.restore.apply import GoOn, Restored
from walcast.restore.around import Around, Goal
from walcast.shortage import disk_errors
from walcast.statedir import state_dir
from walcast.store import Store
from walcast.terms import is_plausible_term
from walcast_follower.apply.applier import Applier, ChecksumMismatch
from walcast_follower.bootstrap.bootstrap import archived_since, keeping_of
from walcast_follower.bootstrap.downloads import leave_room
from walcast_follower.disk_room import check_announced

log = logging.getLogger("walcast.follower")

TEMPORARY = "rebase.db.tmp"
BATCH_PAGES = 256


def catch_up(store: Store, applier: Applier, keeping: Circumstances | None = None) -> bool:
    """What the archive has and the replica does not, in one commit: the files after its position, or, with `keeping`,
    the archive's state when that is of a newer term and the replica is not on its history. False when there is nothing.

    OtherDatabase, before anything is changed, when the archive belongs to another database than the replica.
    """
    mine, owner = read_database_id(state_dir(applier.path)), read_archive_id(store)
    if mine is not None and owner is not None and mine != owner:
        message = f"the archive {store.url} belongs to the database {owner}, and {applier.path} is a copy of {mine}"
        raise OtherDatabase(message, mine=mine, theirs=owner)
    try:
        done = archived_since(store, applier, keeping)
    except ChecksumMismatch:
        if keeping is None:
            raise
        done = False
    if done or keeping is None:
        return done
    return newest_term(store, applier.term) > applier.term and rebase(store, applier, keeping)


def newest_term(store: Store, seen: int) -> int:
    """Of the archive's newest file; 0 when there is none that can be told, or one that is not believed where the
    replica's is `seen`."""
    try:
        newest = plan_restore(list_files(store))[-1]
        term = read_header(store, newest).term
        check_seen_term(term, seen, newest)
    except WalcastError:
        return 0
    return term


def rebase(store: Store, applier: Applier, keeping: Circumstances) -> bool:
    """Commit the archive's newest state; False when it is of no newer term, or of other pages."""
    temporary = state_dir(applier.path) / TEMPORARY

    def attempt(plan: Sequence[ArchiveFile], go_on: GoOn) -> Restored:
        needed_bytes = announced_bytes(store, plan)
        leave_room(store, needed_bytes)
        check_announced(temporary, needed_bytes)
        return restore_to(store, plan, temporary, go_on=go_on)

    try:
        with disk_errors(temporary):
            restored = Around(store, Goal(), list_files(store)).carry_out(attempt)
        if not applier.term < restored.term or not is_plausible_term(restored.term, max(applier.term, 1)):
            return False
        if restored.page_size != applier.page_size:
            return False
        target = keeping_of(applier, keeping)
        target.begin()
        try:
            pgnos = restored.checksums.differing(applier.checksums.pages[: applier.commit_pages])
            with temporary.open("rb") as file:
                for start in range(0, len(pgnos), BATCH_PAGES):
                    batch = pgnos[start : start + BATCH_PAGES].tolist()
                    pages: list[bytes] = []
                    for pgno in batch:
                        file.seek((pgno - 1) * restored.page_size)
                        pages.append(file.read(restored.page_size))
                    target.write_pages(batch, pages)
            target.commit(restored.term, restored.position, restored.commit_pages)
        except BaseException:
            target.rollback()
            raise
    finally:
        temporary.unlink(missing_ok=True)
    facts = {"url": store.url, "position": str(restored.position), "pages": len(pgnos)}
    log.warning("went over to the history of the archive", extra=facts)
    return True
