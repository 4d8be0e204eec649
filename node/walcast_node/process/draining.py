"""The end of a primary: what was committed before it goes out first, within a stated time; the log says how it went.

    capture one last time       CAPTURE_S, or a quarter of the time there is
    followers that stream       FOLLOWERS_S, or a quarter, to have received that position; one that hangs holds up
                                nobody longer
    the archive                 the time that is left, after the streams have ended

All databases at the same time. Apps may go on committing meanwhile; what is promised is what was committed before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from walcast.errors import WalcastError
from walcast.position import Position, format_txid
from walcast_node.process.serving import Serving

log = logging.getLogger("walcast.primary")

CAPTURE_S = 2.0
FOLLOWERS_S = 2.0
QUARTER = 0.25
LOOK_S = 0.01  # a follower acknowledges within 50 ms


@dataclass(slots=True)
class Drain:
    """One database's, within a time. `position`: what was captured at the end; `missing`: what did not go out, and why;
    `archived`: all of it is in the archive, if there is one."""

    serving: Serving
    within_s: float
    began_s: float = field(default_factory=time.monotonic)
    position: Position = Position()  # noqa: RUF009 - frozen
    followers: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    archived: bool = True

    async def to_followers(self) -> None:
        """The last commits, captured, and received by those that stream."""
        serving = self.serving
        capture_s, followers_s = min(CAPTURE_S, self.within_s * QUARTER), min(FOLLOWERS_S, self.within_s * QUARTER)
        try:
            async with asyncio.timeout(capture_s):
                captured = await asyncio.wrap_future(serving.database.loop.barrier())
            self.position = captured.position
        except (WalcastError, TimeoutError) as error:
            why = str(error) or serving.trouble or f"capture does not answer within {capture_s:g} s"
            self.archived = serving.archiver is None
            self.missing.append(f"the last commits are not captured: {why}")
            self.position = serving.served.log.position
        streaming = [one for one in serving.served.followers.connected if one.state == "streaming"]
        until_s = time.monotonic() + followers_s
        while time.monotonic() < until_s and any(one.received_txid < self.position.txid for one in streaming):
            await asyncio.sleep(LOOK_S)
        for one in streaming:
            self.followers[one.id] = max(one.received_txid, self.followers.get(one.id, 0))
        for name, txid in self.followers.items():
            if txid < self.position.txid:
                gone = not any(one.id == name for one in serving.served.followers.connected)
                why = "its stream has ended" if gone else f"it does not acknowledge more within {followers_s:g} s"
                self.missing.append(f"the follower {name} is at TXID {format_txid(txid)}: {why}")

    def note_archive(self) -> None:
        """How far it is now, when nothing more is uploaded."""
        archiver = self.serving.archiver
        if archiver is None or archiver.txid >= self.position.txid:
            return
        self.archived = False
        why = archiver.error or f"the store has not taken more within {self.within_s:g} s"
        self.missing.append(f"the archive is at TXID {format_txid(archiver.txid)}: {why}")

    def say(self) -> None:
        """How it ended."""
        archiver = self.serving.archiver
        facts = {
            "database": self.serving.settings.name,
            "position": str(self.position),
            "followers": {name: format_txid(txid) for name, txid in self.followers.items()},
            "archived_txid": archiver.txid if archiver else None,
            "seconds": round(time.monotonic() - self.began_s, 3),
        }
        if self.missing:
            log.warning("stopping: not everything went out", extra=facts | {"missing": self.missing})
        else:
            log.info("stopping: everything went out", extra=facts)


async def to_followers(databases: Sequence[Serving], within_s: float) -> list[Drain]:
    """First; the streams may end then. `within_s`: for this and the archive together."""
    drains = [Drain(serving, within_s) for serving in databases]
    await asyncio.gather(*(drain.to_followers() for drain in drains))
    return drains


async def to_archives(drains: Sequence[Drain]) -> bool:
    """Then; nothing is archived afterwards. Whether all is archived that is to be."""
    archivers = [drain.serving.archiver for drain in drains if drain.serving.archiver is not None]
    for archiver in archivers:
        archiver.finish()
    until_s = min((drain.began_s + drain.within_s for drain in drains), default=0.0)
    while time.monotonic() < until_s and not all(archiver.ended for archiver in archivers):
        await asyncio.sleep(LOOK_S)
    for drain in drains:
        drain.serving.drained = True
        drain.note_archive()
        drain.say()
    return all(drain.archived for drain in drains)
