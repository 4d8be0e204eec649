"""Watched folders: databases that appear are served, those that are gone are let go, one that fails is tried again.

What is to be served follows from what is on disk, looked at again after each event of inotify and every half minute;
events only say when to look. Nothing that goes wrong with one database touches another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import apsw

from node.config import FolderConfig
from node.folders import Found, Kind
from node.inodes import Inode, Inodes, inode_of
from node.notices import Notices
from node.serving import Serving
from node.settings import DatabaseSettings, settings_of
from walcast.errors import ConfigError, Stopped, WalcastError
from walcast.rpc import replication_pb2 as pb

if TYPE_CHECKING:
    from node.host import Host

log = logging.getLogger("walcast.primary")

SETTLE_S = 0.25  # between an event and the look: whoever makes a file does more than one thing to it
RESCAN_S = 30.0
UNFINISHED_S = 1.0
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
END_S = 5.0


def databases_of(config: FolderConfig, inodes: Inodes) -> list[DatabaseSettings]:
    """Of a folder that is not watched: what is there now. ConfigError when there is none, as in Litestream."""
    where = f"{config.where}: {config.folder.dir}"
    try:
        found = config.folder.scan(inodes)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    if not found.databases:
        raise ConfigError(
            f"{where}: no SQLite database matches {config.folder.pattern!r}; give 'watch' to wait for some"
        )
    return [settings_of(config.database(path)) for path in found.databases]


@dataclass(frozen=True, slots=True)
class Taken:
    """A database of the folder that is served, since a time of the monotonic clock."""

    serving: Serving
    since_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """One that cannot be served now: why, and when it is tried again (monotonic clock)."""

    name: str
    why: str
    inode: Inode | None
    again_s: float

    def is_due(self, path: Path, now_s: float) -> bool:
        """Is it time, or another file by now?"""
        try:
            return self.again_s <= now_s or inode_of(path) != self.inode
        except OSError:
            return False


class Watching:
    """One watched folder, from `async with` on; what it has by then is served when that begins.

    `trouble` says what is wrong, by path; any thread may read it.
    """

    def __init__(self, config: FolderConfig, primary: Host) -> None:
        self.config = config
        self.trouble: dict[str, str] = {}
        self._folder = config.folder
        self._primary = primary
        self._taken: dict[Path, Taken] = {}
        self._failed: dict[Path, Failed] = {}
        self._failures: dict[Path, int] = {}  # in a row, also of those that were served for a moment
        self._unfinished = False
        self._noticed = asyncio.Event()
        self._notices: Notices | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if not self._folder.dir.is_dir():
            raise ConfigError(f"{self.config.where}: {self._folder.dir}: no such folder")
        self._notices = Notices(self._folder, self._noticed)
        await self._look()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._noticed.set()
            await asyncio.wait([self._task], timeout=END_S)
            self._task.cancel()
        if self._notices is not None:
            self._notices.close()

    def look_again(self) -> None:
        """Something may have changed that no event tells."""
        self._noticed.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._noticed.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(0 if self._primary.stopping else SETTLE_S)
            if self._primary.stopping:
                return
            try:
                await self._look()
            except Exception:
                log.exception("cannot look into the folder", extra={"folder": str(self._folder.dir)})
                await asyncio.sleep(RETRY_S[-1])

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
            self._say(where, f"{where}: {error.strerror}")
            return Found() if isinstance(error, FileNotFoundError | NotADirectoryError) else None
        self._say(where, None)
        self._unfinished = any(kind is Kind.UNFINISHED for _, kind in found.waiting)
        return found

    async def _let_go(self) -> None:
        """What failed, or is not at its path any more. Each path is asked for by itself: a folder that cannot be read
        for a moment is no reason to let go of anything."""
        for path, taken in list(self._taken.items()):
            failure = taken.serving.database.loop.failure
            try:
                same: bool | None = inode_of(path) == taken.serving.inode
            except (FileNotFoundError, NotADirectoryError):
                same = None
            except OSError:
                same = True
            if same and failure is None:
                continue
            del self._taken[path]
            if same is None:
                await self._primary.remove(taken.serving, Stopped(f"{path} was removed"), away=False)
                continue
            reason = failure or Stopped(f"{path} was replaced")
            await self._primary.remove(taken.serving, reason, away=True)
            if not same or time.monotonic() - taken.since_s > RETRY_S[-1]:
                self._failures.pop(path, None)  # another file, or one that was well for long
            await self._fail(path, taken.serving.settings.name, reason, taken.serving.inode)

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

    async def _take_one(self, path: Path) -> None:
        name, inode = "", None
        try:
            # Whoever makes a database anew under an old name must not lose its followers over the old one's archive.
            settings = replace(settings_of(self.config.database(path)), serve_unarchived=True)
            name = settings.name
            async with self._primary.gate:
                if self._primary.stopping:
                    return
                inode = inode_of(path)
                if self._primary.is_leaving(name, inode):
                    return  # we are called when it is gone
                if self._primary.inodes.holder(inode) is not None:
                    await self._forget(path)  # listed by itself, or found under another name too
                    return
                serving = await self._primary.add(settings, lambda failure: self._noticed.set())
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not path.exists():
                return
            if not isinstance(error, WalcastError | OSError | apsw.Error):
                log.exception("cannot serve", extra={"path": str(path)})
            await self._fail(path, name, error, inode)
        else:
            self._taken[path] = Taken(serving, time.monotonic())
            failed = self._failed.pop(path, None)
            if failed is not None and failed.inode != serving.inode:
                self._failures.pop(path, None)
            self._say(str(path), None)

    async def _fail(self, path: Path, name: str, error: Exception, inode: Inode | None) -> None:
        """It cannot be served now: refuse its followers for now, and try again, later each time."""
        why = str(error) or type(error).__name__
        failures = self._failures.get(path, 0)
        self._failures[path] = failures + 1
        wait_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
        self._failed[path] = Failed(name, why, inode, time.monotonic() + wait_s)
        self._say(str(path), why)
        if name:
            await self._primary.set_away(name, why)

    async def _forget(self, path: Path) -> None:
        """It is none of ours any more."""
        self._failures.pop(path, None)
        failed = self._failed.pop(path, None)
        if failed is not None:
            await self._primary.set_away(failed.name, None)
        self._say(str(path), None)

    def _say(self, where: str, why: str | None) -> None:
        """Log a trouble when it is new, and keep it until it is over."""
        if why is None:
            self.trouble.pop(where, None)
        elif self.trouble.get(where) != why:
            log.warning("cannot serve, trying again", extra={"where": where, "error": why})
            self.trouble[where] = why

    def name_of(self, where: str) -> str:
        """Of the database whose trouble is under that key of `trouble`; "" where it is no database's. Any thread."""
        failed = self._failed.get(Path(where))
        return failed.name if failed is not None else ""

    def failed_names(self) -> list[str]:
        """Of the databases that cannot be served. Any thread."""
        return [failed.name for failed in list(self._failed.values())]

    def status(self) -> list[pb.DatabaseStatus]:
        """Of those that cannot be served; that is also why their archives get nothing."""
        return [
            pb.DatabaseStatus(
                name=failed.name,
                path=str(path),
                position=pb.Position(),
                archive=pb.ArchiveStatus(error=f"not served: {failed.why}"),
            )
            for path, failed in self._failed.items()
        ]
