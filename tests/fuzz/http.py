"""The HTTP server: raw bytes on a connection, and every Host header, whoever sends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from walcast_node.http.app import App, Hosts, Route, Sees
from walcast_node.http.hosts import check_host_name, host_of, is_known
from walcast_node.http.protocol import OneRequest, config_for
from walcast_node.http.request import Request, json_answer

SHORT = 300
MEMORY_BYTES = 4 << 20
TURNS = 4  # of the event loop, until an answer has been written
TOKENS = [
    b"\r\n",
    b"GET ",
    b"HEAD ",
    b" HTTP/1.0",
    b" HTTP/1.1",
    b"/status",
    b"/healthz",
    b"Host: ",
    b"localhost",
    b"[::1]",
]
TOKENS += [
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Authorization: Bearer wct_",
    b"Upgrade: h2c\r\n",
]
TOKENS += [b"Expect: 100-continue\r\n", b"Connection: upgrade\r\n", b"%", b"\x00", b"\xff", b"?", b"0x7f.1", b"a" * 300]
PLACE: list[tuple[asyncio.AbstractEventLoop, Config]] = []
LOGGED: list[str] = []


class Transport(asyncio.Transport):
    """A connection of somebody on another machine; what is written is kept."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711), "sockname": ("10.0.0.1", 8080)})
        self.written = bytearray()
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_protocol(self) -> asyncio.BaseProtocol:
        return asyncio.BaseProtocol()


class _Kept(logging.Handler):
    """No stranger can have tracebacks written."""

    def emit(self, record: logging.LogRecord) -> None:
        LOGGED.append(self.format(record))


async def _secret(_: Request, __: Sees) -> Any:
    return json_answer(200, {"secret": "of the set"})  # type: ignore[arg-type]


async def _health(_: Request, __: Sees) -> Any:
    return json_answer(200, {"status": "ok"})  # type: ignore[arg-type]


@contextmanager
def running() -> Iterator[None]:
    loop = asyncio.new_event_loop()
    routes = {"/healthz": Route(_health, public=True), "/status": Route(_secret)}
    app = App(routes, lambda request: None, Hosts("10.0.0.1", ("db.example",)))
    loop.set_exception_handler(lambda _, context: LOGGED.append(str(context)))
    PLACE[:] = [(loop, config_for(app))]
    kept, loggers = _Kept(), [logging.getLogger(name) for name in ("walcast", "asyncio")]
    for logger in loggers:
        logger.addHandler(kept)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(kept)
        PLACE.clear()
        loop.close()


def seeds() -> list[bytes]:
    requests = [
        b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:8080\r\n\r\n",
        b"GET /status?a=b HTTP/1.1\r\nhost: db.example\r\nAuthorization: Bearer wct_x\r\n\r\n",
        b"HEAD /healthz HTTP/1.0\r\n\r\n",
        b"POST /status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"GET http://db.example/status HTTP/1.1\r\nHost: evil.example\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    ]
    hosts = [b"localhost", b"[::1]:8080", b"db.example.", b"10.0.0.1:8080", b"evil.example", b"::ffff:10.0.0.1"]
    return [*(b"\0" + one for one in requests), *(b"\1" + one for one in hosts)]


def target(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    if kind == b"\1":
        _host(data.decode("latin-1"))
        return
    loop, config = PLACE[0]
    answer = loop.run_until_complete(_asked(config, data))
    said = LOGGED.copy()
    LOGGED.clear()
    assert not said, said[0]
    assert b"secret" not in answer
    assert not answer or answer.startswith(b"HTTP/1.1 ")


def _host(header: str) -> None:
    known = is_known(header, "10.0.0.1", "10.0.0.1", ("db.example",))
    host = host_of(header)
    assert host is None or (host == host.lower() and host.isprintable() and " " not in host)
    assert not known or host is not None
    check_host_name(header)


async def _asked(config: Config, data: bytes) -> bytes:
    """In two pieces."""
    transport, protocol = Transport(), OneRequest(config, ServerState())
    protocol.connection_made(transport)  # type: ignore[arg-type]
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        if piece and not transport.closing:  # an empty one is the end, of which asyncio tells otherwise
            protocol.data_received(piece)
            for _ in range(TURNS):
                await asyncio.sleep(0)
    protocol.connection_lost(None)
    await asyncio.sleep(0)
    return bytes(transport.written)
