"""What a primary answers on the socket in a state folder: `status`, and `snapshot` with the file behind it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from primary.compaction import Written
from primary.database import Database
from primary.snapshot import snapshot
from walcast import local
from walcast.errors import Unavailable, WalcastError

log = logging.getLogger("walcast.primary")

REQUEST_S = 10.0
CHUNK_BYTES = 1 << 18
STUCK_S = 30.0

Facts = dict[str, Any]


class LocalService:
    """Of one database, in the event loop that `start` is called in. `facts` answers what `walcast status` prints;
    `on_snapshot` is called when somebody was given a snapshot whole."""

    def __init__(
        self, database: Database, facts: Callable[[], Facts], on_snapshot: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._facts = facts
        self._on_snapshot = on_snapshot
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._stopping = False

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
            await self._snapshot(writer)
        else:
            _say(writer, {"error": f"nothing known as {want!r}", "again": False})
        await asyncio.wait_for(writer.drain(), STUCK_S)

    async def _snapshot(self, writer: asyncio.StreamWriter) -> None:
        with ExitStack() as stack:
            try:
                making = asyncio.to_thread(stack.enter_context, snapshot(self._database, self._tick))
                written, file = await asyncio.shield(making)
            except (WalcastError, TimeoutError, OSError) as error:
                _say(writer, {"error": str(error) or "the database is not captured now", "again": True})
                return
            _say(writer, _announcement(written))
            while chunk := file.read(CHUNK_BYTES):
                writer.write(chunk)
                await asyncio.wait_for(writer.drain(), STUCK_S)
        self._on_snapshot()

    def _tick(self) -> None:
        if self._stopping:
            raise Unavailable("stopping")


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
