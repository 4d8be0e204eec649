"""Databases that come and go under a running primary: served while they are there; one that fails is tried again.

Nothing that goes wrong with one database touches another. Which databases there are is for the subclasses to say.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import apsw

from walcast.errors import Stopped, WalcastError
from walcast.oserrors import at_path
from walcast.remedies import FailureKind
from walcast.rpc import replication_pb2 as pb
from walcast_node.config.settings import DatabaseSettings
from walcast_node.process.open_inodes import Inode, inode_of
from walcast_node.process.serving import Serving

if TYPE_CHECKING:
    from walcast_node.process.host import Host

log = logging.getLogger("walcast.primary")

SETTLE_S = 0.25  # between an event and the look: whoever makes a file does more than one thing to it
RESCAN_S = 30.0
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
END_S = 5.0


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
    since_ms: int  # of the epoch
    kind: FailureKind = FailureKind.NOT_SERVED

    def is_due(self, path: Path, now_s: float) -> bool:
        """Is it time, or another file by now?"""
        try:
            return self.again_s <= now_s or inode_of(path) != self.inode
        except OSError:
            return False


class Retrying(ABC):
    """Some of the databases of a primary, from `async with` on; what can be served by then is served when that begins.

    `trouble` says what is wrong, by path; any thread may read it.
    """

    where = ""  # for the log: what names the databases

    def __init__(self, primary: Host) -> None:
        self.trouble: dict[str, str] = {}
        self._primary = primary
        self._taken: dict[Path, Taken] = {}
        self._failed: dict[Path, Failed] = {}
        self._failures: dict[Path, int] = {}  # in a row, also of those that were served for a moment
        self._noticed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
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

    @abstractmethod
    async def _look(self) -> None:
        """Let go of what is gone, and take what is there and due."""

    @abstractmethod
    def _settings(self, path: Path) -> DatabaseSettings:
        """How to serve the database at `path`. ConfigError."""

    @abstractmethod
    async def _gone(self, path: Path, taken: Taken) -> None:
        """There is nothing at the path of a database that was served."""

    @abstractmethod
    async def _missing(self, path: Path, name: str) -> None:
        """There is nothing at the path of a database that was to be served."""

    async def _is_ours(self, settings: DatabaseSettings) -> bool:
        """Of a file that is served already: is it to be served from here nevertheless? Listed by itself, or found under
        another name too, it is not."""
        await self._forget(settings.path)
        return False

    def _inode(self, settings: DatabaseSettings) -> Inode | None:
        """The file that is to be served. OSError, ConfigError."""
        return inode_of(settings.path)

    @property
    def awaited(self) -> list[str]:
        """Of those that cannot be served, the ones that their app is to make first."""
        return []

    @property
    def is_restoring(self) -> bool:
        """Is one to be restored that is not there yet, and whose archive may have it?"""
        return False

    @abstractmethod
    def _pause_s(self) -> float:
        """Until the next look, if nothing is noticed before."""

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
                log.exception("cannot look for databases", extra={"where": self.where})
                await asyncio.sleep(RETRY_S[-1])

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
                await self._gone(path, taken)
                continue
            reason = failure or Stopped(f"{path} was replaced")
            await self._primary.remove(taken.serving, reason, away=True)
            if not same or time.monotonic() - taken.since_s > RETRY_S[-1]:
                self._failures.pop(path, None)  # another file, or one that was well for long
            await self._fail(path, taken.serving.settings.name, reason, taken.serving.inode)

    async def _take_one(self, path: Path) -> None:
        name, inode = "", None
        try:
            settings = self._settings(path)
            name = settings.name
            async with self._primary.gate:
                if self._primary.stopping:
                    return
                inode = self._inode(settings)
                if self._primary.is_leaving(name, inode):
                    return  # we are called when it is gone
                if inode and self._primary.inodes.holder(inode) and not await self._is_ours(settings):
                    return
                serving = await self._primary.add(settings, lambda failure: self._noticed.set())
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not path.exists():
                await self._missing(path, name)
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
        why = at_path(error, path) if isinstance(error, OSError) else str(error) or type(error).__name__
        failures = self._failures.get(path, 0)
        self._failures[path] = failures + 1
        wait_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
        self._failed[path] = Failed(name, why, inode, time.monotonic() + wait_s, self._since_ms(path))
        self._say(str(path), why)
        if name:
            await self._primary.set_away(name, why)

    async def _wait_for(self, path: Path, name: str, why: str) -> None:
        """It is not there yet, which is no fault: refuse its followers for now, and look again at the next look."""
        self._failed[path] = Failed(name, f"{path}: {why}", None, 0.0, self._since_ms(path), FailureKind.NOT_MADE)
        if self.trouble.get(str(path)) != f"{path}: {why}":
            self.trouble[str(path)] = f"{path}: {why}"
            log.info("waiting for the app to make the database", extra={"database": name, "path": str(path)})
        await self._primary.set_away(name, why)

    def _since_ms(self, path: Path) -> int:
        failed = self._failed.get(path)
        return failed.since_ms if failed is not None else int(time.time() * 1000)

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

    def kind_of(self, where: str) -> FailureKind:
        """Of the trouble under that key of `trouble`. Any thread."""
        failed = self._failed.get(Path(where))
        return failed.kind if failed is not None else FailureKind.NOT_SERVED

    def failed_names(self) -> list[str]:
        """Of the databases that cannot be served. Any thread."""
        return [failed.name for failed in list(self._failed.values())]

    def status(self) -> list[pb.DatabaseStatus]:
        """Of those that cannot be served; that is also why their archives get nothing."""
        return [
            pb.DatabaseStatus(
                name=failed.name,
                path=str(path.absolute()),
                position=pb.Position(),
                archive=pb.ArchiveStatus(error=f"not served: {failed.why}"),
                trouble=failed.why,
                trouble_kind=failed.kind,
                state_since_ms=failed.since_ms,
            )
            for path, failed in self._failed.items()
        ]
