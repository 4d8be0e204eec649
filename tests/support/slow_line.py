"""A line between two nodes, as TCP through a proxy: slow, cut after some bytes, or with a byte damaged on its way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from walcast.wire import Address

PIECE_BYTES = 4096
BUFFER_BYTES = 16 << 10  # a real line holds little


@dataclass
class Line:
    """What is done to the bytes that come from the server. `rate`: bytes a second, None: as they come. `cut_after`: so
    many bytes, each connection ends. `damage`: which bytes of all are changed, ascending."""

    rate: float | None = None
    cut_after: int | None = None
    damage: list[int] = field(default_factory=list)
    address: Address = Address("127.0.0.1", 0)  # noqa: RUF009 - frozen
    passed_bytes: int = 0
    connections: int = 0

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(PIECE_BYTES):
            while self.damage and self.damage[0] < self.passed_bytes + len(data):
                at = max(0, self.damage.pop(0) - self.passed_bytes)
                data = data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :]
            if self.rate is not None:
                await asyncio.sleep(len(data) / self.rate)
            writer.write(data)
            await writer.drain()
            passed += len(data)
            self.passed_bytes += len(data)
            if self.cut_after is not None and passed >= self.cut_after:
                return


async def _up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def line_to(server: Address, line: Line) -> AsyncIterator[Line]:
    """`line.address` leads to the server, until the end of the block."""
    tasks: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line.connections += 1
        there, back = await asyncio.open_connection(server.host, server.port, limit=BUFFER_BYTES)
        ways = [asyncio.ensure_future(line._down(there, writer)), asyncio.ensure_future(_up(reader, back))]
        tasks.update(ways)
        with suppress(OSError):
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for one in (writer, back):
            one.transport.abort()

    listening = await asyncio.start_server(connect, "127.0.0.1", 0, limit=BUFFER_BYTES)
    line.address = Address("127.0.0.1", listening.sockets[0].getsockname()[1])
    try:
        yield line
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
