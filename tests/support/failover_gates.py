"""TCP between the nodes of a replica set, so that it can be cut: bytes stop, connections stay, in both directions.

Each node is reached through a gate of its own (`--advertise`). Who connects is found out by the socket's owner in
/proc, so a node can be cut off from all others also where it is the client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PIECE_BYTES = 1 << 16


class Gates:
    """All gates of a set, in one thread. `pid_of` answers the process of a node, None while there is none."""

    def __init__(self, pid_of: Callable[[str], int | None]) -> None:
        self._pid_of = pid_of
        self._upstream: dict[str, tuple[str, int]] = {}
        self._names: list[str] = []
        self._cut: set[str] = set()
        self._pairs: set[frozenset[str]] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], tuple[str, str]] = {}
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="gates")
        self._thread.start()

    def open(self, name: str) -> str:
        """A gate before the node: HOST:PORT. `lead` says where to; until then connections wait."""

        async def serve() -> int:
            server = await asyncio.start_server(lambda r, w: self._accept(name, r, w), "127.0.0.1", 0)
            self._servers.append(server)
            port: int = server.sockets[0].getsockname()[1]
            return port

        self._names.append(name)
        return f"127.0.0.1:{self._run(serve())}"

    def lead(self, name: str, address: str) -> None:
        """The node listens there now."""
        host, _, port = address.rpartition(":")
        self._upstream[name] = (host, int(port))

    def cut(self, name: str, *others: str) -> None:
        """Between the node and `others`, all if there are none, nothing gets through any more."""
        pairs = {frozenset((name, other)) for other in others}
        self._run(self._change(self._cut | (set() if others else {name}), self._pairs | pairs))

    def heal(self, *, drop: bool = False) -> None:
        """Everything gets through, also what was held up; `drop`: connections that were cut end, and what was held up
        in them is lost."""
        self._run(self._change(set(), set(), drop=drop))

    def close(self) -> None:
        """End all connections."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    async def _change(self, cut: set[str], pairs: set[frozenset[str]], *, drop: bool = False) -> None:
        if drop:
            ended = [task for task, ends in self._tasks.items() if self._is_cut(*ends)]
            for task in ended:
                task.cancel()
            await asyncio.gather(*ended, return_exceptions=True)
        self._cut, self._pairs = cut, pairs
        self._changed.set()
        self._changed = asyncio.Event()

    def _is_cut(self, source: str, target: str) -> bool:
        return bool({source, target} & self._cut) or frozenset((source, target)) in self._pairs

    async def _passable(self, source: str, target: str) -> None:
        while self._is_cut(source, target):
            await self._changed.wait()

    async def _accept(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = ("", target)
        try:
            source = self._owner(writer.get_extra_info("peername")[1])
            self._tasks[task] = (source, target)
            await self._passable(source, target)
            there, back = await asyncio.open_connection(*self._upstream[target])
            both = [self._pump(source, target, reader, back), self._pump(source, target, there, writer)]
            try:
                await asyncio.gather(*both)
            finally:
                back.close()
        except (OSError, KeyError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            del self._tasks[task]

    async def _pump(self, source: str, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE_BYTES):
            await self._passable(source, target)
            writer.write(piece)
            await writer.drain()
        await self._passable(source, target)  # the end of a connection is news, too
        with suppress(OSError):
            writer.write_eof()

    def _owner(self, port: int) -> str:
        """The node whose process has the socket with that local port; "" for somebody else's."""
        inode = _inode_of(port)
        for name in self._names:
            pid = self._pid_of(name)
            if pid is not None and f"socket:[{inode}]" in _descriptors(pid):
                return name
        return ""


def _inode_of(port: int) -> str:
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[9] != "0":
                return fields[9]
    return ""


def _descriptors(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                yield str(entry.readlink())


@contextmanager
def gates(pid_of: Callable[[str], int | None]) -> Iterator[Gates]:
    """Closed with the block."""
    made = Gates(pid_of)
    try:
        yield made
    finally:
        made.close()
