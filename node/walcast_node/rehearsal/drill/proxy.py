"""TCP between the nodes, on a thread of its own: counted by who talks to whom, and cut on demand.

While a node is cut off no byte passes to it or from it, nor does the news that a connection was closed: connections
stay open and are silent, as when a cable is pulled. When it is healed what was held goes on, late.

Who has opened a connection is known by the id that it sends with its first call. The archive in S3 is reached through
an HTTP proxy of the node's own (CONNECT for https), cut at the same time.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

PIECE_BYTES = 1 << 16
FIRST_BYTES = 1 << 15
START_S = 5.0
CONNECT_S = 5.0
_HEAD = re.compile(rb"([A-Z]+) (\S+) HTTP/1")


@dataclass(slots=True, eq=False)
class Connection:
    """From `source`, "" while it is not known, to `target`; bytes in both directions."""

    source: str
    target: str
    seen: bytes = b""
    asked_bytes: int = 0
    answered_bytes: int = 0


class Proxies:
    """One listening port a node; `ids` are the ids that nodes send, by their names."""

    def __init__(self, ids: dict[str, str]) -> None:
        self.ports: dict[str, int] = {}
        self.http_ports: dict[str, int] = {}
        self.targets: dict[str, int] = {}
        self.connections: list[Connection] = []
        self._ids = {name: identity.encode() for name, identity in ids.items()}
        self._cut: set[str] = set()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)

    # Called from any thread

    def start(self) -> None:
        """Listen on ports that the system chooses."""
        self._thread.start()
        self._call(self._listen())

    def close(self) -> None:
        """End everything."""
        if self._thread.is_alive():
            with suppress(TimeoutError):
                self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_S)
            self._loop.close()

    def cut(self, name: str) -> None:
        """From now on nothing passes to this node or from it."""
        self._call(self._set(self._cut | {name}))

    def heal(self, name: str) -> None:
        """Everything passes again."""
        self._call(self._set(self._cut - {name}))

    def passed_bytes(self, *, source: str | None = None, target: str | None = None) -> int:
        """That passed on connections from one node to another, both directions; None: any."""
        return sum(
            one.asked_bytes + one.answered_bytes
            for one in list(self.connections)
            if source in (None, one.source) and target in (None, one.target)
        )

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    # In the loop

    async def _listen(self) -> None:
        for name in self._ids:
            for ports, serve in ((self.ports, self._node), (self.http_ports, self._http)):
                server = await asyncio.start_server(self._serving(serve, name), "127.0.0.1", 0)
                self._servers.append(server)
                ports[name] = server.sockets[0].getsockname()[1]

    def _serving(self, serve: Any, name: str) -> Any:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(serve(name, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accepted

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set(self, cut: set[str]) -> None:
        self._cut = cut
        self._changed.set()
        self._changed = asyncio.Event()

    async def _open(self, names: Iterable[str]) -> None:
        """Until none of them is cut off."""
        while self._cut & set(names):
            await self._changed.wait()

    async def _node(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody talks to this node."""
        one = Connection("", name)
        self.connections.append(one)
        await self._open([name])
        port = self.targets.get(name)
        await self._between(one, "127.0.0.1", port, reader, writer) if port else _drop(writer)

    async def _http(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """This node asks for something in the world."""
        first = await reader.read(PIECE_BYTES)
        await self._open([name])
        head = _HEAD.match(first)
        if head is None:
            return _drop(writer)
        method, where = head[1].decode(), head[2].decode()
        url = urlsplit(f"//{where}" if method == "CONNECT" else where)
        port = url.port or (443 if method == "CONNECT" else 80)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            first = b""
        await self._between(Connection(name, "archive"), url.hostname or "", port, reader, writer, first)

    async def _between(
        self,
        one: Connection,
        host: str,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        first: bytes = b"",
    ) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                there, back = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            return _drop(writer)
        if first:
            back.write(first)
        try:
            await asyncio.gather(self._pump(one, reader, back, True), self._pump(one, there, writer, False))
        finally:
            _drop(writer)
            _drop(back)

    async def _pump(
        self, one: Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asks: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(PIECE_BYTES):
                if asks and not one.source:
                    self._recognise(one, data)
                await self._open([one.source, one.target])
                sink.write(data)
                await sink.drain()
                one.asked_bytes += len(data) if asks else 0
                one.answered_bytes += 0 if asks else len(data)
        await self._open([one.source, one.target])
        with suppress(OSError):
            sink.close()

    def _recognise(self, one: Connection, data: bytes) -> None:
        if len(one.seen) < FIRST_BYTES:
            one.seen += data
            one.source = next((name for name, sent in self._ids.items() if sent in one.seen), "")
            if one.source:
                one.seen = b""


def _drop(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.close()
