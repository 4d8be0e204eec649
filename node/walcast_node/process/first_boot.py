"""The first boot: a database that is missing is restored from its archive, or the app is waited for to make it.

A file of zero bytes is no database yet: SQLite gives it its first page with the first commit.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from walcast.archive import ArchiveGap, list_files, plan_restore
from walcast.archive.reading import read_header
from walcast.errors import ConfigError, Corrupt, NotAllowed, Stopped, Unavailable
from walcast.filesystem import SQLITE_MAGIC, check_database_file, check_local, has_wal, is_missing
from walcast.rarely import Rarely
from walcast.restore import restore
from walcast.store import ObjectMissing, Store, open_store
from walcast_node.config.settings import DatabaseSettings
from walcast_node.process.detached import run_detached
from walcast_primary.capture.opening import DatabaseInUse

log = logging.getLogger("walcast.primary")

LOOK_S = 0.1
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
SAY_EVERY_S = 600.0
FREE_S = 60.0
RESTORE_FIRST_S = 2.0  # a small one is there before anybody asks

T = TypeVar("T")


def is_awaited(settings: DatabaseSettings) -> bool:
    """May this database be missing when its primary starts?"""
    return (settings.restore or settings.wait_s > 0) and is_missing(settings.path)


def restore_missing(settings: DatabaseSettings, stopping: Callable[[], bool] = lambda: False) -> bool:
    """Make a missing database from its archive, where that was asked for. False when there is still none, as the
    archive is empty. ConfigError where nothing could ever come of it; Stopped once the node is to stop."""
    if not settings.path.parent.is_dir() and not settings.restore:
        raise ConfigError(f"{settings.path.parent}: no such folder; make it first, or check the path")
    if not settings.restore:
        return False
    if not settings.archive:
        if settings.wait_s:
            return False
        raise ConfigError(f"{settings.path}: no such file, and no archive to restore it from")

    def go_on(done: int, total: int) -> None:
        if stopping():
            raise Stopped(f"{settings.path}: not restored, because this node is to stop")

    with open_store(settings.archive) as store:
        report = restore(
            store, settings.path, if_db_not_exists=True, if_replica_exists=True, mode=settings.mode, progress=go_on
        )
        if report.restored is None:
            if not settings.wait_s and is_missing(settings.path):
                raise ConfigError(f"{settings.path}: no such file, and its archive {store.url} is empty")
            return not is_missing(settings.path)
        log.info("restored", extra={"path": str(settings.path), "url": store.url, "at": str(report.restored.position)})
        return True


async def restore_when_reachable(
    settings: DatabaseSettings, stopping: Callable[[], bool], say: Callable[[str | None], object]
) -> bool:
    """As `restore_missing`, tried again where the archive, or room on the disk, is not there now: a container often
    starts before its network does. For `settings.wait_s`, then Unavailable; what is wrong for good (credentials, a
    bucket's name) is an error at once. `say` is told why there is no database yet, and None when that is over. False
    also when the node is to stop first."""
    began_s, rarely, tries = time.monotonic(), Rarely(log), 0
    while True:
        try:
            restored = await _restored(settings, stopping, say)
        except Unavailable as error:
            if time.monotonic() - began_s >= settings.wait_s and not stopping():
                raise
            facts = {"database": settings.name, "path": str(settings.path), "error": str(error)}
            rarely.log(logging.WARNING, "cannot restore the database yet, trying again", "restore", facts)
            say(f"{settings.path}: cannot be restored yet: {error}")
        except Stopped:
            return False
        else:
            rarely.over("the archive can be read again", "restore", {"database": settings.name})
            say(None)
            return restored
        until_s = time.monotonic() + RETRY_S[min(tries, len(RETRY_S) - 1)]
        tries += 1
        while time.monotonic() < until_s:
            if stopping():
                return False
            await asyncio.sleep(LOOK_S)


async def _restored(
    settings: DatabaseSettings, stopping: Callable[[], bool], say: Callable[[str | None], object]
) -> bool:
    """As `restore_missing`. `say` is told of it where it takes its time."""
    work = run_detached(restore_missing, settings, stopping, name=f"restore-{settings.name}")
    restoring = asyncio.ensure_future(work)
    try:
        await asyncio.wait([restoring], timeout=RESTORE_FIRST_S)
        if not restoring.done():
            say(f"{settings.path}: being restored from its archive")
        return await restoring
    finally:
        restoring.cancel()


async def wait_for_database(settings: DatabaseSettings, stopping: Callable[[], bool]) -> bool:
    """Until the app has made it; False when the node is to stop first. ConfigError after `settings.wait_s`, and at once
    where this process could do nothing beside it."""
    check_rights(settings.path.parent)
    began_s = said_s = time.monotonic()
    facts = {"database": settings.name, "path": str(settings.path)}
    limit = "none" if math.isinf(settings.wait_s) else f"{settings.wait_s:g}"
    log.info("waiting for the app to make the database", extra=facts | {"limit_s": limit})
    while not await asyncio.to_thread(_is_there, settings.path):
        now_s = time.monotonic()
        if stopping():
            return False
        if now_s - began_s >= settings.wait_s:
            raise ConfigError(f"{settings.path}: no such file: the app has not made it within {settings.wait_s:g} s")
        if now_s - said_s >= SAY_EVERY_S:
            said_s = now_s
            log.warning("still waiting for the app to make the database", extra=facts)
        await asyncio.sleep(LOOK_S)
    return True


async def opened_when_free(open_it: Callable[[], Awaitable[T]], stopping: Callable[[], bool]) -> T:
    """What `open_it` answers; tried again for a while as long as the app, which has just made it, holds it."""
    until_s = time.monotonic() + FREE_S
    while True:
        try:
            return await open_it()
        except DatabaseInUse:
            if stopping() or time.monotonic() >= until_s:
                raise
        await asyncio.sleep(LOOK_S)


def check_rights(folder: Path) -> None:
    """NotAllowed where this process may not make the files that are beside a database, as on a volume of root's."""
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise NotAllowed(
            f"{folder}: uid {os.geteuid()}, which walcast runs as, may not write there: give the folder to that user "
            "(chown, or the owner of the volume), or run walcast and the app as its owner"
        )


def _is_there(path: Path) -> bool:
    """Does the file begin as a database does? What is none is there, too: opening it says what is wrong."""
    if is_missing(path):
        return False
    check_local(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.read(descriptor, len(SQLITE_MAGIC))
    finally:
        os.close(descriptor)
    return len(head) == len(SQLITE_MAGIC) and any(head)


def check_not_emptied(path: Path, store: Store | None, *, continue_archive: bool) -> None:
    """ConfigError when the database at `path`, which this process has not opened yet, is empty and its archive is not:
    a file that was lost and made anew must not become the newest state of the archive. `continue_archive` says that
    it is meant; with that the archive is not asked."""
    if store is None or continue_archive or not _is_empty(path):
        return
    if has_something(store):
        raise emptied(path, store)


def emptied(path: Path, store: Store) -> ConfigError:
    """What is wrong with an empty database, and what to do."""
    return ConfigError(
        f"{path} is an empty database, and its archive {store.url} is not empty: to go on with what is archived, stop "
        f"its app and restore that first (walcast restore {store.url} -o {path} --force); to archive the empty "
        "database, say so once with --continue-archive"
    )


def has_something(store: Store) -> bool:
    """Is the newest state of the archive more than an empty database? What cannot be read may be."""
    files = list_files(store)
    if not files:
        return False
    try:
        return read_header(store, plan_restore(files)[-1]).commit_pages > 1
    except (ArchiveGap, Corrupt, ObjectMissing):
        return True


def _is_empty(path: Path) -> bool:
    """Has it no table and no other page than its first? SQLite deletes a WAL beside a file of zero bytes."""
    with path.open("rb") as file:
        head = file.read(_CELLS.stop)
        size = file.seek(0, os.SEEK_END)
    if not head:
        return True
    if has_wal(path):
        return False
    page_size = int.from_bytes(head[16:18], "big")
    one_page = size <= (65536 if page_size == 1 else page_size)
    return one_page and head[_LEAF] == b"\x0d" and head[_CELLS] == b"\0\0"


_LEAF, _CELLS = slice(100, 101), slice(103, 105)  # of page 1, behind the file's header: the schema's table


def check_there(database: DatabaseSettings) -> None:
    """ConfigError where the database cannot be opened."""
    if not os.path.lexists(database.path) and database.path.parent.is_dir():
        ways = "--wait-for-db SECONDS|forever where the app is to make it, --restore where its archive has it"
        raise ConfigError(f"{database.path}: no such file; start with {ways}")
    check_database_file(database.path)
