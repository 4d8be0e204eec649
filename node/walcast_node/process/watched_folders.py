"""Watched folders: databases that appear are served, and those that are gone are let go.

What is to be served follows from what is on disk, looked at again after each event of inotify and every half minute;
events only say when to look. Nothing that goes wrong with one database touches another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from walcast.errors import ConfigError, Stopped
from walcast.oserrors import at_path
from walcast_node.config.configuration import FolderConfig
from walcast_node.config.settings import DatabaseSettings, settings_of
from walcast_node.process.folders import Found, Kind
from walcast_node.process.inotify_folders import Notices
from walcast_node.process.open_inodes import Inodes
from walcast_node.process.retried_databases import RESCAN_S, SETTLE_S, Retrying, Taken

if TYPE_CHECKING:
    from walcast_node.process.host import Host

log = logging.getLogger("walcast.primary")

UNFINISHED_S = 1.0


def databases_of(config: FolderConfig, inodes: Inodes) -> list[DatabaseSettings]:
    """Of a folder that is not watched: what is there now. ConfigError when there is none, as in Litestream."""
    where = f"{config.where}: {config.folder.dir}"
    try:
        found = config.folder.scan(inodes)
    except OSError as error:
        raise ConfigError(at_path(error, where)) from error
    if not found.databases:
        raise ConfigError(
            f"{where}: no SQLite database matches {config.folder.pattern!r}; give 'watch' to wait for some"
        )
    return [settings_of(config.database(path)) for path in found.databases]


class Watching(Retrying):
    """One watched folder."""

    def __init__(self, config: FolderConfig, primary: Host) -> None:
        super().__init__(primary)
        self.config = config
        self.where = str(config.folder.dir)
        self._folder = config.folder
        self._unfinished = False
        self._notices: Notices | None = None

    async def __aenter__(self) -> Self:
        if not self._folder.dir.is_dir():
            raise ConfigError(
                f"{self.config.where}: {self._folder.dir}: no such folder; make it first, or check the path"
            )
        self._notices = Notices(self._folder, self._noticed)
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if self._notices is not None:
            self._notices.close()

    def _pause_s(self) -> float:
        now = time.monotonic()
        again_s = min((failed.again_s - now for failed in self._failed.values()), default=RESCAN_S)
        return max(SETTLE_S, min(again_s, UNFINISHED_S if self._unfinished else RESCAN_S))

    # From what is there to what is served

    async def _look(self) -> None:
        self._noticed.clear()
        found = await self._scan()
        await self._let_go()
        if found is not None:
            await self._take(found)

    async def _scan(self) -> Found | None:
        """What is there; None when that cannot be told now."""
        assert self._notices is not None
        where = str(self._folder.dir)
        try:
            found = await asyncio.to_thread(self._folder.scan, self._primary.inodes)
            if self._notices.watch(found):  # then what came before the watch was told of by none
                found = await asyncio.to_thread(self._folder.scan, self._primary.inodes)
                if self._notices.watch(found):
                    self._noticed.set()
        except OSError as error:
            self._say(where, at_path(error, where))
            return Found() if isinstance(error, FileNotFoundError | NotADirectoryError) else None
        self._say(where, None)
        self._unfinished = any(kind is Kind.UNFINISHED for _, kind in found.waiting)
        return found

    async def _take(self, found: Found) -> None:
        now = time.monotonic()
        for path in (self._failed.keys() | self._failures.keys()) - set(found.databases):
            await self._forget(path)
        new = [path for path in found.databases if path not in self._taken]
        room = self._primary.room
        more = f"{len(new) - room} databases more than one primary serves" if len(new) > room else None
        self._say(f"{self._folder.dir}/", more)
        due = [path for path in new if path not in self._failed or self._failed[path].is_due(path, now)]
        await asyncio.gather(*map(self._take_one, due[:room]))

    def _settings(self, path: Path) -> DatabaseSettings:
        # Whoever makes a database anew under an old name must not lose its followers over the old one's archive.
        return replace(settings_of(self.config.database(path)), serve_unarchived=True)

    async def _gone(self, path: Path, taken: Taken) -> None:
        await self._primary.remove(taken.serving, Stopped(f"{path} was removed"), away=False)

    async def _missing(self, path: Path, name: str) -> None:
        """The next scan says that it is gone."""
