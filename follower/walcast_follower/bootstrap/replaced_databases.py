"""A whole database kept aside, before one with pages of another size takes its place."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from pathlib import Path

import apsw

from walcast.errors import Unavailable
from walcast.filesystem import fsync_directory
from walcast.permissions import OWNER_ONLY
from walcast.position import format_txid
from walcast.shortage import disk_errors
from walcast_follower.apply.applier import Applier
from walcast_follower.disk_room import check_announced

log = logging.getLogger("walcast.follower")

READ_ONLY = apsw.SQLITE_OPEN_READONLY
BUSY_TIMEOUT_MS = 1000
KEPT_MOST = 3  # each is as large as the database was


def keep_aside(applier: Applier, state_dir: Path) -> Path:
    """A durable copy of the database in the state folder, under a name that tells its state: an ordinary SQLite file.
    Page by page nothing can be kept where the pages that replace them are of another size. DiskFull, Unavailable."""
    name = f"replaced-{format_txid(applier.position.txid)}-{applier.checksums.database:016x}.db"
    kept, temporary = state_dir / name, state_dir / f"{name}.tmp"
    if kept.exists():
        return kept
    check_announced(temporary, applier.commit_pages * applier.page_size)
    temporary.unlink(missing_ok=True)
    try:
        _copy(applier.path, temporary)
        with disk_errors(temporary):
            temporary.chmod(OWNER_ONLY)
            fd = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.rename(kept)
            fsync_directory(state_dir)
    except apsw.Error as error:
        raise Unavailable(f"{kept}: the replica cannot be kept aside: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    log.warning("kept the replica aside", extra={"database": str(applier.path), "kept": str(kept)})
    _delete_oldest(kept)
    return kept


def _copy(path: Path, to: Path) -> None:
    """Page by page: VACUUM INTO would need the collations and functions of the app."""
    with closing(apsw.Connection(str(to))) as copy, closing(apsw.Connection(str(path), flags=READ_ONLY)) as replica:
        replica.set_busy_timeout(BUSY_TIMEOUT_MS)
        copy.execute("PRAGMA journal_mode = OFF")  # a half is removed, with nothing beside it
        with copy.backup("main", replica, "main") as backup:
            backup.step()


def _delete_oldest(newest: Path) -> None:
    """What was kept before, beyond KEPT_MOST of them."""
    others = [path for path in newest.parent.glob("replaced-*.db") if path != newest]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in others[KEPT_MOST - 1 :]:
        path.unlink(missing_ok=True)
        facts = {"deleted": str(path), "kept_most": KEPT_MOST}
        log.warning("deleted a replica that was kept aside: there are newer ones", extra=facts)
