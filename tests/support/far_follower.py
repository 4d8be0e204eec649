"""A follower in this process, behind a line that is slow, breaks or damages bytes, and the primary at its other end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.e2e_oracle import Served
from support.slow_line import Line, line_to
from support.writers import sql

from walcast import wire
from walcast.rpc import replication_pb2 as pb
from walcast.wire import Address
from walcast_follower.following import Following
from walcast_follower.subscribe.primary_client import Client
from walcast_node.process.grpc_server import listen
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.served_database import Served as ServedDatabase

ROW_BYTES = 3000  # about one a page
ROWS = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) INSERT INTO t SELECT randomblob({}) FROM n"


def add(path: Path, rows: int) -> None:
    """Rows that do not compress, by another process, as one transaction."""
    with sql(path) as app:
        app(ROWS.format(rows, ROW_BYTES))


@asynccontextmanager
async def following(app: Served, replica: Path, line: Line, **options: Any) -> AsyncIterator[Following]:
    """A follower behind the line; it must not have ended by itself."""
    publisher = Publisher({"app": ServedDatabase(app.database)}, lambda: pb.StatusReply(), Gate(listening=lambda: at))
    server, _, at = listen(publisher, Address("127.0.0.1", 0), wire.Tls(), connections=10)
    await server.start()
    replica.parent.mkdir(exist_ok=True)
    try:
        async with line_to(at, line):
            client = Client(line.address, wire.Tls(), database="app", follower_id="f")
            follower = Following(replica, client, **options)
            task = asyncio.create_task(follower.run())
            try:
                yield follower
                assert not task.done(), task.exception()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        publisher.stop()
        await server.stop(0)
        await until(lambda: not app.database.readers, 10)  # the thread of a copy may still read


async def until(what: Callable[[], bool], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.02)


def level(follower: Following, app: Served) -> Callable[[], bool]:
    return lambda: follower.applier is not None and follower.applier.position == app.position


def run(work: Awaitable[None]) -> None:
    async def alone() -> None:
        await work

    asyncio.run(alone())
