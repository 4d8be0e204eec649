"""What a primary answers on the socket in a state folder: `status`; `snapshot`, with the file behind it; `archived`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, BinaryIO

from primary.archiving.compaction import Written
from primary.archiving.snapshot import snapshot
from primary.database import Database
from walcast import local
from walcast.errors import Unavailable, WalcastError

log = logging.getLogger("walcast.primary")

REQUEST_S = 10.0
CHUNK_BYTES = 1 << 18
STUCK_S = 30.0
SLOWEST_BYTES_S = 64 << 10

Facts = dict[str, Any]


class LocalService:
    """Of one database, in the event loop that `start` is called in. `facts` answers what `walcast status` prints;
    `on_archived` is called when somebody says that he put a snapshot into an archive."""

    def __init__(
        self, database: Database, facts: Callable[[], Facts], on_archived: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._facts = facts
        self._on_archived = on_archived
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._snapshotting = False

    async def start(self) -> None:
        """Listen. A file system without sockets costs the local commands, not the service."""
        try:
            made = local.listen(self._database.path)
        except OSError as error:
            log.warning("no local socket", extra={"database": self._database.name, "error": str(error)})
            return
        self._server = await asyncio.start_unix_server(self._serve, sock=made, limit=local.LINE_BYTES)

    async def stop(self) -> None:
        """Hang up and remove the socket."""
        self._stopping = True
        if self._server is None:
            return
        self._server.close()
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        local.forget(self._database.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, ValueError, asyncio.CancelledError):
            pass  # whoever asked went away, is stuck, or speaks another language; or we are to stop
        finally:
            self._calls.discard(call)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await asyncio.wait_for(reader.readline(), REQUEST_S))
        want = request.get("want") if isinstance(request, dict) else None
        if want == "status":
            _say(writer, self._facts())
        elif want == "snapshot":
            await self._snapshot(reader, writer)
        elif want == "archived":
            self._on_archived()
            _say(writer, {})
        else:
            _say(writer, {"error": f"nothing known as {want!r}", "again": False})
        await asyncio.wait_for(writer.drain(), STUCK_S)

    async def _snapshot(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One at a time, in a thread of its own, for as long as whoever asked listens."""
        if self._snapshotting:
            _say(writer, {"error": "a snapshot is being made for somebody else", "again": True})
            return
        self._snapshotting = True
        hung_up = asyncio.ensure_future(reader.read(1))

        def tick() -> None:
            if self._stopping or hung_up.done():
                raise Unavailable("nobody waits for the snapshot any more")

        try:
            with ThreadPoolExecutor(1, thread_name_prefix="snapshot") as thread, ExitStack() as stack:
                loop = asyncio.get_running_loop()
                try:
                    making = loop.run_in_executor(thread, stack.enter_context, snapshot(self._database, tick))
                    written, file = await asyncio.shield(making)
                except (WalcastError, TimeoutError, OSError) as error:
                    _say(writer, {"error": str(error) or "the database is not captured now", "again": True})
                    return
                _say(writer, _announcement(written))
                await asyncio.wait_for(_send(file, writer), STUCK_S + written.trailer.size / SLOWEST_BYTES_S)
        finally:
            self._snapshotting = False
            hung_up.cancel()


async def _send(file: BinaryIO, writer: asyncio.StreamWriter) -> None:
    while chunk := file.read(CHUNK_BYTES):
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
