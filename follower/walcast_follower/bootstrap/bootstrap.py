"""Make a replica where there is none, and bring one up to date that the stream cannot, from the archive.

* `from_archive`: snapshot and what follows, into a new file.
* `archived_since`: what the archive has after a replica's position, as one commit under its readers.

From the primary: `walcast_follower.bootstrap.page_copy`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from walcast import ltx
from walcast.archive import ArchiveEmpty, ArchiveFile, list_files, plan_restore
from walcast.archive.damage import DamagedFile, check_seen_term, check_size
from walcast.archive.identity import read_archive_id
from walcast.archive.reading import announced_bytes
from walcast.discarded import Circumstances
from walcast.identity import forget_database_id, write_database_id
from walcast.permissions import OWNER_ONLY
from walcast.position import Position
from walcast.restore import pages_after, restore_to
from walcast.restore.apply import GoOn, Restored
from walcast.restore.around import Around, Goal
from walcast.shortage import disk_errors
from walcast.statedir import state_dir
from walcast.store import Store
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.overwritten_pages import Keeping
from walcast_follower.bootstrap.downloads import leave_room
from walcast_follower.bootstrap.fresh_file import Fresh
from walcast_follower.bootstrap.new_replica import TEMPORARY, put_in_place
from walcast_follower.disk_room import check_announced

log = logging.getLogger("walcast.follower")

ROOM_EVERY_PAGES = 256
ROOM_BYTES = 2 << 20  # pages go to the WAL before the archive's files are proven, and must not fill the disk

Progress = Callable[[int, int], None]


def from_archive(
    store: Store, path: Path, state_dir: Path, progress: Progress | None = None, *, mode: int = OWNER_ONLY
) -> Fresh | None:
    """Make the replica at `path`; None when the archive has nothing to begin with. `mode`: where there was no file.

    What is damaged, or compacted away while this runs, is gone around as in any restore.
    """
    temporary = state_dir / TEMPORARY
    owner = read_archive_id(store)

    def attempt(plan: Sequence[ArchiveFile], go_on: GoOn) -> Restored:
        needed_bytes = announced_bytes(store, plan)
        leave_room(store, needed_bytes)
        check_announced(temporary, needed_bytes)
        return restore_to(store, plan, temporary, progress=progress, go_on=go_on)

    try:
        with disk_errors(temporary):
            restored = Around(store, Goal(), list_files(store)).carry_out(attempt)
            fresh = Fresh.of(temporary, restored.checksums)  # before anybody else can open it
            if owner is not None:
                write_database_id(state_dir, owner)
            else:
                forget_database_id(state_dir)  # of a database that is no more
            put_in_place(temporary, path, state_dir, restored.term, restored.position, mode=mode)
    except ArchiveEmpty:
        return None
    finally:
        temporary.unlink(missing_ok=True)
    facts = {"url": store.url, "position": str(restored.position), "files": restored.files}
    log.info("bootstrapped from the archive", extra=facts)
    return fresh


def archived_since(store: Store, applier: Applier, keeping: Circumstances | None = None) -> bool:
    """Apply what the archive has after the replica's position, in one commit; False when it has no such chain.

    Where that leads into a newer term the replica may have transactions that the archive's history has not, and their
    pages may all be overwritten: with `keeping` what the replica had in their place goes to `discarded/` first, unless
    the archive goes on from exactly its position.
    """
    plan = plan_restore(list_files(store), after_txid=applier.position.txid)
    if not plan or plan[0].min_txid > applier.position.txid + 1:
        return False
    target: Applier | Keeping | None = None
    try:
        header = None
        pages_before = applier.checksums.commit_pages
        for (header, pages), file in zip(pages_after(store, plan), plan, strict=True):
            _check_announced(header, file, applier, pages_before)
            pages_before = header.commit_pages
            if target is None:
                target = applier if keeping is None or _goes_on(header, applier) else keeping_of(applier, keeping)
                target.begin()
            for count, page in enumerate(pages):
                if count % ROOM_EVERY_PAGES == 0:
                    check_announced(applier.path, ROOM_BYTES)
                target.write_pages([page.pgno], [page.data])
        if target is None or header is None or not header.database_checksum:
            applier.rollback()
            return False
        position = Position(header.max_txid, header.database_checksum)
        target.commit(header.term, position, header.commit_pages, header.timestamp_ms)
    except BaseException:
        (target or applier).rollback()
        raise
    log.info("caught up from the archive", extra={"url": store.url, "position": str(position), "files": len(plan)})
    return True


def _check_announced(header: ltx.Header, file: ArchiveFile, applier: Applier, pages_before: int) -> None:
    """What a file announces, before anything of it is written: DamagedFile for what cannot be, DiskFull."""
    if header.page_size != applier.page_size:
        raise DamagedFile(file, f"has pages of {header.page_size} bytes, and the replica of {applier.page_size}")
    check_seen_term(header.term, applier.term, file)
    check_size(header, file, pages_before)
    check_announced(applier.path, (header.commit_pages - pages_before) * header.page_size)


def keeping_of(applier: Applier, circumstances: Circumstances) -> Keeping:
    """Stands before the applier in one transaction, and keeps what that takes away. Called in a thread."""
    keeping = Keeping(applier, state_dir(applier.path), circumstances)
    keeping.look_up_tables_here()
    return keeping


def _goes_on(header: ltx.Header, applier: Applier) -> bool:
    """Is the replica's position on the history that the archive's next file is of? A term has one history."""
    here = applier.position
    exactly = (header.min_txid, header.pre_checksum) == (here.txid + 1, here.checksum)
    return header.term <= applier.term or exactly
