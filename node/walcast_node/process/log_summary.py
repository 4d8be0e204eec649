"""A line of the log, now and then, that says how all is: its absence tells that nobody is there to say it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from walcast.position import Position
from walcast.remedies import NOT_THERE
from walcast.rpc import replication_pb2 as pb
from walcast_node.process.health import Failure

log = logging.getLogger("walcast.node")

NAMES_SHOWN = 5
NO_ROLE = "not served"
WELL, UNWELL = "all well", "not all is well"


async def summarize(
    every_s: float, status: Callable[[], pb.StatusReply], failures: Callable[[], Sequence[Failure]]
) -> None:
    """Every `every_s`, for ever; never when that is 0."""
    while every_s:
        await asyncio.sleep(every_s)
        level, event, facts = summary(status(), failures())
        log.log(level, event, extra=facts)


def summary(status: pb.StatusReply, failures: Sequence[Failure]) -> tuple[int, str, dict[str, object]]:
    """The line's level, its event, and its facts."""
    databases = status.databases
    followers = [follower for database in databases for follower in database.followers]
    wrong = [f"{failure.database}: {failure.text}" if failure.database else failure.text for failure in failures]
    wrong += [f"{d.name}: {d.archive.error}" for d in databases if d.archive.error and d.trouble_kind not in NOT_THERE]
    facts: dict[str, object] = {
        "databases": len(databases),
        "roles": ", ".join(
            f"{count} {role}" for role, count in Counter(d.role or NO_ROLE for d in databases).most_common()
        ),
        "followers": len(followers),
        "lag_ms_most": round(max((follower.lag_ms for follower in followers), default=0.0), 1),
        "unarchived_txids": max(
            (d.position.txid - d.archive.txid for d in databases if d.HasField("archive")), default=0
        ),
        "wal_bytes": sum(d.wal_bytes for d in databases),
    }
    if len(databases) <= NAMES_SHOWN:
        at = [f"{d.name} {Position(d.position.txid, d.position.checksum)}" for d in databases]
        facts["positions"] = ", ".join(at)
    if not wrong:
        return logging.INFO, WELL, facts
    return logging.WARNING, UNWELL, facts | {"wrong": len(wrong), "first": wrong[0]}
