"""Distance: TCP between the regions of this machine passes through here, and takes as long as it is told.

Every region has two gates, one before its walcast node and one before its app. These are the addresses that the others
know (`--advertise`, `--app-url`), so the delay is there whoever is the primary. Who has opened a connection is seen by
the process that owns its other end.

A byte between two regions takes the distance of both, one way; between nodes it can be held back on top of that, both
ways, as walcast compares clocks by the time that a question and its answer take. Bandwidth is not limited, and the
handshake of TCP costs nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PIECE_BYTES = 1 << 16
PIECES = 1000  # on their way, in one direction of a connection
CALL_S = 5.0
CONNECT_S = 2.0


@dataclass(frozen=True, slots=True)
class Link:
    """How far away a region is, now; what is on its way is not overtaken when that changes."""

    distance_ms: int = 0
    hold_ms: int = 0


@dataclass(frozen=True, slots=True)
class Gate:
    """Before one region; `streams`: before its node, which may be further away."""

    region: str
    streams: bool


@dataclass(slots=True)
class Gates:
    """`groups`: region → the process groups that are its own now. Called from any thread; has one of its own."""

    groups: Callable[[], dict[str, set[int]]]
    links: dict[str, Link] = field(default_factory=dict)
    _ports: dict[Gate, int] = field(default_factory=dict)
    _targets: dict[Gate, int] = field(default_factory=dict)
    _servers: dict[Gate, asyncio.Server] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="gates", daemon=True)
        self._thread.start()

    def open(self, gate: Gate) -> int:
        """Its port; until `lead` says where they go, connections to it end at once."""

        async def serve() -> int:
            server = await asyncio.start_server(
                lambda reader, writer: self._accept(gate, reader, writer), "127.0.0.1", self._ports.get(gate, 0)
            )
            self._servers[gate] = server
            self._ports[gate] = server.sockets[0].getsockname()[1]
            return self._ports[gate]

        return self._call(serve())

    def lead(self, gate: Gate, port: int) -> None:
        """Where it leads from now on."""
        self._targets[gate] = port

    def shut(self, gate: Gate) -> None:
        """Connections are refused, as by a machine on which nobody listens; until it is opened again, on its port."""

        async def shut() -> None:
            self._servers[gate].close()

        self._targets.pop(gate, None)
        self._call(shut())

    def close(self) -> None:
        """End all connections."""

        async def end() -> None:
            for server in self._servers.values():
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        if self._thread is not None:
            with suppress(TimeoutError):
                self._call(end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_S)
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    def _delay_s(self, source: str, gate: Gate) -> float:
        """`source` has opened the connection. Strangers, as monitors, are near."""
        near, far = self.links.get(source), self.links[gate.region]
        if near is None:
            return 0.0
        held_ms = near.hold_ms if gate.streams else 0
        return (near.distance_ms + far.distance_ms + held_ms) / 1000

    async def _accept(self, gate: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            source = self._owner(writer.get_extra_info("peername")[1])

            def delay_s() -> float:
                return self._delay_s(source, gate)

            async with asyncio.timeout(CONNECT_S):
                there, back = await asyncio.open_connection("127.0.0.1", self._targets[gate])
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, back, delay_s))
                    both.create_task(self._pump(there, writer, delay_s))
            finally:
                back.close()
        except* (OSError, TimeoutError, KeyError, asyncio.CancelledError):
            pass  # one of the two has gone, or there is nobody
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: Callable[[], float]
    ) -> None:
        """Until the end, which takes as long as everything."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)

        async def give() -> None:
            while True:
                due_s, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
            with suppress(OSError):
                writer.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(give())
            piece = b"."
            while piece:
                piece = await reader.read(PIECE_BYTES)
                await pieces.put((loop.time() + delay_s(), piece))

    def _owner(self, port: int) -> str:
        """The region whose process has the socket with that local port; "" for somebody else's."""
        socket = f"socket:[{_inode_of(port)}]"
        for region, groups in self.groups().items():
            if any(socket in _sockets(pid) for pid in _members(groups)):
                return region
        return ""


def _inode_of(port: int) -> str:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port and fields[9] != "0":
                    return fields[9]
    return ""


def _members(groups: set[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(entry.name)) in groups:
                    found.append(int(entry.name))
    return found


def _sockets(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(entry.readlink()))
    return found
