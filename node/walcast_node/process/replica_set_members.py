"""Members of replica sets, where one process has several databases: one that fails stops none of the others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import apsw

from walcast.errors import WalcastError
from walcast.statedir import state_dir
from walcast.terms import PRIMARY, read_standing
from walcast_node.config.settings import DatabaseSettings, MemberSettings
from walcast_node.failover.member import Member
from walcast_node.process.configured_databases import LOOK_S
from walcast_node.process.first_boot import check_there, is_awaited
from walcast_node.process.open_inodes import Inode, inode_of
from walcast_node.process.retried_databases import RESCAN_S, RETRY_S, Retrying, Taken
from walcast_primary.capture.opening import check_readable

if TYPE_CHECKING:
    from walcast_node.process.host import Host

SETTLE_LOOK_S = 0.1


def check_member(settings: MemberSettings) -> None:
    """ConfigError when it is to be the primary, and its database is missing or is none."""
    path = settings.database.path
    standing = read_standing(state_dir(path))
    if (standing.role if standing else settings.role) == PRIMARY:
        if is_awaited(settings.database):
            return
        check_there(settings.database)
        if not state_dir(path).exists():
            check_readable(path)


class KeptMembers(Retrying):
    """All members of a process; each is begun again when it failed, later each time."""

    where = "the members"

    def __init__(self, members: Sequence[MemberSettings], primary: Host) -> None:
        super().__init__(primary)
        self._all = {settings.database.path: settings for settings in members}
        self._running: dict[Path, tuple[Member, float]] = {}  # since a time of the monotonic clock
        self._ended: dict[Path, WalcastError] = {}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await asyncio.gather(*(member.close() for member, _ in self._running.values()))

    async def settle(self) -> None:
        """Until each has found its role, or cannot, or has no database yet."""
        while not self._primary.stopping:
            open_ones = [member for member, _ in self._running.values() if not _is_decided(member)]
            if not open_ones:
                return
            with contextlib.suppress(TimeoutError):  # it may end before it has one
                async with asyncio.timeout(SETTLE_LOOK_S):
                    await open_ones[0].settled.wait()

    @property
    def is_restoring(self) -> bool:
        return any(member.restore_error is not None for member, _ in self._running.values())

    def _pause_s(self) -> float:
        return LOOK_S if self._failed else RESCAN_S

    async def _look(self) -> None:
        self._noticed.clear()
        for path in list(self._ended):
            await self._end(path, self._ended.pop(path))
        now = time.monotonic()
        for path, settings in self._all.items():
            if path not in self._running and (path not in self._failed or self._failed[path].is_due(path, now)):
                await self._begin(path, settings)

    async def _begin(self, path: Path, settings: MemberSettings) -> None:
        try:
            await asyncio.to_thread(check_member, settings)
        except (WalcastError, OSError, apsw.Error) as error:
            await self._fail(path, settings.database.name, error, _inode(path))
            return
        self._failed.pop(path, None)
        self._say(str(path), None)
        member = Member(self._primary, settings)
        self._running[path] = member, time.monotonic()
        self._primary.members.append(member)
        member.start(partial(self._failed_later, path))

    def _failed_later(self, path: Path, error: WalcastError) -> None:
        self._ended.setdefault(path, error)
        self._noticed.set()

    async def _end(self, path: Path, error: WalcastError) -> None:
        member, since_s = self._running.pop(path)
        if time.monotonic() - since_s > RETRY_S[-1]:
            self._failures.pop(path, None)  # it was well for long
        if member.settled.is_set() and _is_gone(path):  # whoever removes it does not want it restored at once
            settings = self._all[path]
            self._all[path] = replace(settings, database=replace(settings.database, restore=False))
        # Of the file that failed: another one that is at the path by now is tried at once.
        inode = member.serving.inode if member.serving is not None else _inode(path)
        # Status has it at every moment, as a member or as what failed, and asks nothing of files that are being closed.
        self._primary.members.remove(member)
        self._primary.forget(member.name)
        await self._fail(path, member.name, error, inode)
        await member.close()

    def _settings(self, path: Path) -> DatabaseSettings:
        return self._all[path].database

    async def _gone(self, path: Path, taken: Taken) -> None:
        """Members let go of their databases themselves."""

    async def _missing(self, path: Path, name: str) -> None:
        """`check_member` says so."""


def _is_decided(member: Member) -> bool:
    return member.settled.is_set() or member.awaits_app.is_set() or member.restore_error is not None


def _inode(path: Path) -> Inode | None:
    try:
        return inode_of(path)
    except OSError:
        return None


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False
