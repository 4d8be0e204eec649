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

from node.first_boot import is_awaited, restore_missing
from node.inodes import Inode, inode_of
from node.retrying import RESCAN_S, Retrying, Taken
from node.settings import DatabaseSettings
from walcast.errors import ConfigError, Stopped, WalcastError
from walcast.filesystem import check_database_file

if TYPE_CHECKING:
    from node.host import Host

NOT_MADE = "the app has not made it yet"
LOOK_S = 1.0  # while one is not served: a stat for each of them


class Listed(Retrying):
    """All that the file names one by one."""

    where = "the configuration file"

    def __init__(self, databases: Sequence[DatabaseSettings], primary: Host) -> None:
        super().__init__(primary)
        self._listed = {database.path: database for database in databases}
        self._awaited: set[Path] = set()
        self._wait_began_s = time.monotonic()

    @property
    def awaited(self) -> list[str]:
        """The names of the databases that the app is to make first. For any thread."""
        return [self._listed[path].name for path in list(self._awaited)]

    def _pause_s(self) -> float:
        return LOOK_S if self._failed else RESCAN_S

    async def _look(self) -> None:
        self._noticed.clear()
        await self._let_go()
        now = time.monotonic()
        new = [path for path in self._listed if path not in self._taken]
        due = [path for path in new if path not in self._failed or self._failed[path].is_due(path, now)]
        await asyncio.gather(*map(self._make_and_take, due))

    async def _make_and_take(self, path: Path) -> None:
        """Restore a missing database first where that was asked for. Where nothing can be restored, the app is waited
        for as long as was asked."""
        settings = self._listed[path]
        try:
            made = not is_awaited(settings) or await asyncio.to_thread(restore_missing, settings)
        except (WalcastError, OSError) as error:
            await self._fail(path, settings.name, error, None)
            return
        if made:
            self._awaited.discard(path)
            await self._take_one(path)
        elif time.monotonic() - self._wait_began_s < settings.wait_s:
            self._awaited.add(path)
            await self._wait_for(path, settings.name, NOT_MADE)
        else:
            self._awaited.discard(path)
            why = f"{path}: no such file: the app has not made it within {settings.wait_s:g} s"
            await self._fail(path, settings.name, ConfigError(why), None)

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
