"""The databases that a configuration file names: one that is missing, garbage or removed stops none of the others.

It is reported, looked for again, and served when it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from walcast.errors import ConfigError, Stopped, Unavailable
from walcast.filesystem import check_database_file, is_missing
from walcast_node.config.settings import DatabaseSettings
from walcast_node.process.detached import run_detached
from walcast_node.process.first_boot import RESTORE_FIRST_S, restore_missing
from walcast_node.process.open_inodes import Inode, inode_of
from walcast_node.process.retried_databases import RESCAN_S, Retrying, Taken

if TYPE_CHECKING:
    from walcast_node.process.host import Host

NOT_MADE = "the app has not made it yet"
LOOK_S = 1.0  # while one is not served: a stat for each of them


class Listed(Retrying):
    """All that the file names one by one."""

    where = "the configuration file"

    def __init__(self, databases: Sequence[DatabaseSettings], primary: Host) -> None:
        super().__init__(primary)
        self._listed = {database.path: database for database in databases}
        self._restores: dict[Path, asyncio.Future[bool]] = {}
        self._unreachable: set[Path] = set()  # whose archives, so that nobody knows whether they have something
        self._waits_since_s: dict[Path, float] = {}  # for the app, which is to make them

    def _pause_s(self) -> float:
        return LOOK_S if self._failed else RESCAN_S

    @property
    def is_restoring(self) -> bool:
        return bool(self._restores or self._unreachable)

    @property
    def awaited(self) -> list[str]:
        waits = list(self._waits_since_s.items())
        now_s = time.monotonic()
        return [self._listed[path].name for path, since_s in waits if now_s - since_s < self._listed[path].wait_s]

    async def _look(self) -> None:
        self._noticed.clear()
        await self._let_go()
        now = time.monotonic()
        new = [path for path in self._listed if path not in self._taken]
        due = [path for path in new if path not in self._failed or self._is_due(path, now)]
        await asyncio.gather(*map(self._take_one, due))

    def _is_due(self, path: Path, now_s: float) -> bool:
        restoring = self._restores.get(path)
        return restoring.done() if restoring is not None else self._failed[path].is_due(path, now_s)

    async def _take_one(self, path: Path) -> None:
        settings = self._listed[path]
        may_be_missing = settings.restore or settings.wait_s > 0
        if path in self._restores or (may_be_missing and await asyncio.to_thread(_is_missing, path)):
            if settings.restore and not await self._is_restored(settings):
                return
            if await asyncio.to_thread(_is_missing, path):
                await self._await_app(settings)
                return
        self._unreachable.discard(path)
        self._waits_since_s.pop(path, None)
        await super()._take_one(path)

    async def _await_app(self, settings: DatabaseSettings) -> None:
        """There is nothing to restore: the app makes the database, for which it has as long as was asked."""
        path, name = settings.path, settings.name
        now_s = time.monotonic()
        if now_s - self._waits_since_s.setdefault(path, now_s) < settings.wait_s:
            await self._wait_for(path, name, NOT_MADE)
            return
        what = f"the app has not made it within {settings.wait_s:g} s" if settings.wait_s else "its archive is empty"
        await self._fail(path, name, ConfigError(f"{path}: no such file: {what}"), None)

    async def _is_restored(self, settings: DatabaseSettings) -> bool:
        """Begin to restore it, or see how that went: the others do not wait for it for long. True when that is over,
        also where its archive is empty."""
        path, name = settings.path, settings.name
        restoring = self._restores.get(path)
        if restoring is None:
            work = run_detached(restore_missing, settings, lambda: self._primary.stopping, name=f"restore-{name}")
            restoring = self._restores[path] = asyncio.ensure_future(work)
            restoring.add_done_callback(lambda _: self.look_again())
            await asyncio.wait([restoring], timeout=RESTORE_FIRST_S)
        if not restoring.done():
            await self._fail(path, name, Unavailable(f"{path}: being restored from its archive"), None)
            return False
        del self._restores[path]
        error = restoring.exception()
        (self._unreachable.add if isinstance(error, Unavailable) else self._unreachable.discard)(path)
        if error is None:
            self._listed[path] = replace(settings, restore=False)  # also an empty archive is asked once only
            return True
        await self._fail(path, name, error if isinstance(error, Exception) else Unavailable(str(error)), None)
        return False

    def _settings(self, path: Path) -> DatabaseSettings:
        return self._listed[path]

    def _inode(self, settings: DatabaseSettings) -> Inode | None:
        inode = inode_of(settings.path)
        # Never where it is open already: to close another descriptor of it would drop SQLite's locks.
        if self._primary.inodes.holder(inode) is None:
            check_database_file(settings.path)
        return inode

    async def _is_ours(self, settings: DatabaseSettings) -> bool:
        return True  # then it says whose file it is

    async def _missing(self, path: Path, name: str) -> None:
        await self._fail(path, name, ConfigError(f"{path}: no such file"), None)

    async def _gone(self, path: Path, taken: Taken) -> None:
        """Whoever removes a database does not want it restored at once; the next start of this process may do that."""
        reason = Stopped(f"{path} was removed")
        self._listed[path] = replace(self._listed[path], restore=False)
        await self._primary.remove(taken.serving, reason, away=True)
        await self._fail(path, taken.serving.settings.name, reason, taken.serving.inode)


def _is_missing(path: Path) -> bool:
    """False also where nobody can say: opening it tells why."""
    try:
        return is_missing(path)
    except OSError:
        return False
