"""What the process that serves or follows a database answers on the socket in its state folder.

`snapshot`, with the file behind it, where it is the primary; all else as it is told to.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from walcast import local
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.lasting import outlast
from walcast.levels import Level
from walcast.rarely import Rarely
from walcast.rpc import replication_pb2 as pb
from walcast.shortage import reason, shortage
from walcast_node.process.limits import local_calls
from walcast_primary.archiving.compaction import Written
from walcast_primary.archiving.snapshot import snapshot
from walcast_primary.database import Database
from walcast_primary.publish.barriers import barrier
from walcast_primary.publish.served_database import Refused, Served
from walcast_primary.tenure import Tenure

log = logging.getLogger("walcast.primary")

REQUEST_S = 10.0
CHUNK_BYTES = 1 << 18
STUCK_S = 30.0
SLOWEST_BYTES_S = 64 << 10
LISTEN_AGAIN_S = 30.0

Facts = dict[str, Any]
Answer = Callable[[Facts], Awaitable[Facts]]


class LocalService:
    """Of the database at `path`, in the event loop that `start` is called in. `answers`: what is wanted → the answer to
    the request; a WalcastError is told to whoever asked. `database` answers the one that is served, None: none is."""

    def __init__(self, path: Path, answers: Mapping[str, Answer], database: Callable[[], Database | None]) -> None:
        self._path = path
        self._answers = answers
        self._database = database
        self._server: asyncio.Server | None = None
        self._listening: asyncio.Task[None] | None = None
        self._most = local_calls()
        self._rarely = Rarely(log)
        self._calls: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._snapshotting = False

    async def start(self) -> None:
        """Listen. A socket that cannot be made costs the local commands, not the service, and is tried again."""
        await self._listen()
        if self._server is None:
            self._listening = asyncio.create_task(outlast(self._listen_later, self._path, "local socket"))

    async def stop(self) -> None:
        """Hang up and remove the socket."""
        self._stopping = True
        if self._listening is not None:
            self._listening.cancel()
        if self._server is None:
            return
        self._server.close()
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        local.forget(self._path)

    async def _listen(self) -> None:
        try:
            made = local.listen(self._path)
        except OSError as error:
            facts = {"database": str(self._path), "error": reason(error)}
            self._rarely.log(logging.WARNING, "no local socket", "listen", facts)
            return
        self._server = await asyncio.start_unix_server(
            self._serve, sock=made, limit=local.LINE_BYTES, backlog=local.BACKLOG
        )

    async def _listen_later(self) -> None:
        while self._server is None:
            await asyncio.sleep(LISTEN_AGAIN_S)
            await self._listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.current_task()
        assert call is not None
        if len(self._calls) >= self._most:  # each holds a descriptor
            _say(writer, {"error": f"{self._path}: {self._most} commands and apps ask at once", "again": True})
            writer.close()
            return
        self._calls.add(call)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, ValueError, TypeError, asyncio.CancelledError):
            pass  # whoever asked went away, is stuck, or speaks another language; or we are to stop
        except (RuntimeError, MemoryError) as error:
            if shortage(error, self._path) is None:
                raise
        finally:
            self._calls.discard(call)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await asyncio.wait_for(reader.readline(), REQUEST_S))
        want = str(request.get("want")) if isinstance(request, dict) else ""
        if want == "snapshot":
            await self._snapshot(reader, writer)
        elif want in self._answers:
            try:
                _say(writer, await self._answers[want](request))
            except WalcastError as error:
                _say(writer, {"error": str(error), "again": not isinstance(error, ConfigError)})
            except Refused as refused:
                _say(writer, _refusal(refused.refusal))
        else:
            _say(writer, {"error": f"nothing known as {want!r}", "again": False})
        await asyncio.wait_for(writer.drain(), STUCK_S)

    async def _snapshot(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One at a time, in a thread of its own, for as long as whoever asked listens."""
        database = self._database()
        if database is None:
            _say(writer, {"error": f"{self._path}: this node is not the primary now", "again": True})
            return
        if self._snapshotting:
            _say(writer, {"error": "a snapshot is being made for somebody else", "again": True})
            return
        self._snapshotting = True
        hung_up = asyncio.ensure_future(reader.read(1))

        def tick() -> None:
            if self._stopping or hung_up.done():
                raise Unavailable("nobody waits for the snapshot any more")
            database.tenure.check()  # it is for an archive, which may be another's by now

        try:
            with ThreadPoolExecutor(1, thread_name_prefix="snapshot") as thread, ExitStack() as stack:
                loop = asyncio.get_running_loop()
                try:
                    making = loop.run_in_executor(thread, stack.enter_context, snapshot(database, tick))
                    written, file = await asyncio.shield(making)
                    tick()
                except (WalcastError, TimeoutError, OSError) as error:
                    _say(writer, {"error": str(error) or "the database is not captured now", "again": True})
                    return
                _say(writer, _announcement(written))
                await asyncio.wait_for(
                    _send(file, writer, database.tenure), STUCK_S + written.trailer.size / SLOWEST_BYTES_S
                )
        finally:
            self._snapshotting = False
            hung_up.cancel()


async def answer_barrier(served: Served, request: Facts) -> Facts:
    """To `barrier`: as the call of that name, for one database. Refused; ConfigError for a level that is none."""
    try:
        level = Level.parse(str(request.get("level", Level.DURABLE)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    reached = await barrier(served, int(request.get("followers", 0)), float(request.get("within_s", 0)), level)
    position = reached.position
    return {"term": reached.term, "position": str(position), "followers": reached.followers}


def _refusal(refusal: pb.Refusal) -> Facts:
    """`primary` says that this node is not it, and where it is."""
    facts = {"error": refusal.detail, "again": True}
    return facts | ({"primary": refusal.primary} if refusal.kind == pb.REFUSAL_KIND_NOT_PRIMARY else {})


async def _send(file: BinaryIO, writer: asyncio.StreamWriter, tenure: Tenure) -> None:
    while chunk := file.read(CHUNK_BYTES):
        if not tenure.holds:
            raise ConnectionAbortedError
        writer.write(chunk)
        await asyncio.wait_for(writer.drain(), STUCK_S)


def _say(writer: asyncio.StreamWriter, answer: Facts) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")


def _announcement(written: Written) -> Facts:
    header, trailer = written.header, written.trailer
    return {
        "header": header.encode().hex(),
        "post_checksum": trailer.post_checksum,
        "file_checksum": trailer.file_checksum,
        "size": trailer.size,
    }
