"""The HTTP server in this process, and bytes that are said to it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from walcast.wire import Address
from walcast_node.http.app import Admits, Route, Sees
from walcast_node.http.request import Request
from walcast_node.http.routes import near, routes
from walcast_node.http.server import HttpServer
from walcast_node.process.health import Failure

LOOPBACK = Address("127.0.0.1", 0)
LOCAL = b"\r\nHost: localhost\r\n\r\n"
SOON_S = 5.0


async def facts(_: Sees) -> dict[str, Any]:
    return {"role": "primary"}


def everything(_: Request) -> Sees:
    return lambda _: True


@contextmanager
def serving(
    admits: Admits = near,
    *failures: Failure,
    more: dict[str, Route] | None = None,
    **named: Any,
) -> Iterator[HttpServer]:
    named.setdefault("connections", 8)
    made = HttpServer(LOOPBACK, routes(lambda: failures, facts, bytes) | (more or {}), admits, **named)
    try:
        yield made
    finally:
        made.close()


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.listening.port), timeout=SOON_S)


def say(server: HttpServer, data: bytes) -> bytes:
    """All that the server answers to these bytes, until it hangs up."""
    got = b""
    with connect(server) as one, suppress(ConnectionError):
        one.sendall(data)
        while part := one.recv(1 << 16):
            got += part
    return got


def code_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def headers_of(answer: bytes) -> dict[str, str]:
    lines = answer.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def body_of(answer: bytes) -> Any:
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


def get(server: HttpServer, path: str, host: str = "localhost") -> bytes:
    return say(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())


def hung_up(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
