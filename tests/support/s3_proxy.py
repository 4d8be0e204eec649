"""A reverse proxy in front of an S3 server, on a thread: it counts requests, refuses service and slows answers down.

    with proxied("http://127.0.0.1:9000") as (endpoint, traffic):
        traffic.requests                    # Counter: LIST, GET, HEAD, PUT, DELETE, OTHER, and of an upload in parts
                                            # MULTIPART (it begins), PART, COMPLETE, ABORT
        traffic.sent_bytes                  # Counter, by operation: of the bodies that were sent to the server
        traffic.delay_s = 0.2               # before every answer, from now on
        with traffic.outage("503"): ...     # every request is answered 503 Slow Down
        with traffic.outage("close"): ...   # every connection is closed at its next request
        with traffic.outage("hang"): ...    # no answer until the outage ends
        with traffic.outage("lose"): ...    # the server does what is asked, but its answer is lost
        with traffic.outage("503", "PUT", "DELETE"): ...   # only these operations; the others go through
        traffic.start_outage("close"); traffic.end_outage()   # the same where a block does not fit
        traffic.start_outage("lose", "PUT", times=1)          # ends by itself after so many requests

Requests are counted as they come in, also those that are then refused; `refused` counts these alone. The Host header
goes through unchanged, because signature version 4 covers it.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PIECE_BYTES = 1 << 16
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}
_POSTS = (("delete", "DELETE"), ("uploads", "MULTIPART"), ("uploadId", "COMPLETE"))
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
)


class Traffic:
    """What came through a proxy, and what it does to that. Attributes may be read and set from any thread."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.delay_s = 0.0
        self._outage: tuple[str, tuple[str, ...]] | None = None
        self._left: int | None = None
        self._changed = threading.Condition()
        self._closing = False

    def start_outage(self, kind: str, *operations: str, times: int | None = None) -> None:
        """`kind` is "503", "close", "hang" or "lose"; without operations it hits all, without `times` until it ends."""
        assert kind in ("503", "close", "hang", "lose"), kind
        with self._changed:
            self._outage = (kind, operations)
            self._left = times
            self._changed.notify_all()

    def end_outage(self) -> None:
        with self._changed:
            self._outage = None
            self._changed.notify_all()

    @contextmanager
    def outage(self, kind: str, *operations: str, times: int | None = None) -> Iterator[None]:
        self.start_outage(kind, *operations, times=times)
        try:
            yield
        finally:
            self.end_outage()

    def wait_for(self, operation: str, count: int, timeout_s: float = 10.0) -> bool:
        """Until `count` requests of that operation came in, all told; false when the time is over before."""
        with self._changed:
            return self._changed.wait_for(lambda: self.requests[operation] >= count, timeout_s)

    def close(self) -> None:
        """Let all that hangs or is delayed end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def admit(self, operation: str) -> str | None:
        """Count a request, delay it; what to refuse it with, or None to let it pass."""
        with self._changed:
            self.requests[operation] += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing, self.delay_s)
            kind = self._hit(operation)
            if kind is not None:
                self.refused[operation] += 1
                if self._left is not None:
                    self._left -= 1
                    self._outage = self._outage if self._left else None
            if kind == "hang":
                self._changed.wait_for(lambda: self._closing or self._hit(operation) != "hang")
            return "close" if self._closing or kind == "hang" else kind

    def _hit(self, operation: str) -> str | None:
        if self._outage is None or (self._outage[1] and operation not in self._outage[1]):
            return None
        return self._outage[0]


def operation_of(method: str, target: str) -> str:
    """What a request to S3 does, by its method and query."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "GET":
        return "LIST" if {"list-type", "prefix", "delimiter"} & query.keys() else "GET"
    if method == "PUT":
        return "PART" if "partNumber" in query else "PUT"
    if method == "POST":
        return next((name for part, name in _POSTS if part in query), "OTHER")
    if method == "DELETE":
        return "ABORT" if "uploadId" in query else "DELETE"
    return "HEAD" if method == "HEAD" else "OTHER"


@contextmanager
def proxied(upstream: str) -> Iterator[tuple[str, Traffic]]:
    """A proxy before the server at `upstream` (http://host:port): its endpoint, and its traffic."""
    host, port = urlsplit(upstream).hostname or "", urlsplit(upstream).port or 80
    traffic = Traffic()

    class Handler(_Handler):
        def connect(self) -> http.client.HTTPConnection:
            return http.client.HTTPConnection(host, port, timeout=60)

    Handler.traffic = traffic
    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", traffic
        finally:
            traffic.close()
            server.shutdown()
            thread.join()
            server.hang_up()


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that none outlives it."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in tuple(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up, or a server that went away: the client sees its connection closed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = _PIECE_BYTES
    traffic: Traffic

    def connect(self) -> http.client.HTTPConnection:
        raise NotImplementedError

    def setup(self) -> None:
        super().setup()
        self.upstream = self.connect()

    def finish(self) -> None:
        self.upstream.close()
        with suppress(OSError):
            super().finish()

    def handle_expect_100(self) -> bool:
        """At once, or the client waits a second for it."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def forward(self) -> None:
        refusal = self.traffic.admit(operation_of(self.command, self.path))
        if refusal is None:
            self._send_upstream()
            self._send_back()
        elif refusal == "lose":
            self._send_upstream()
            self.upstream.getresponse().read()
            self.close_connection = True
        elif refusal == "503":
            self._read_body(lambda piece: None)
            self._answer_503()
        else:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815 - names of http.server

    def _send_upstream(self) -> None:
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.upstream.putheader(name, value)
        self.upstream.endheaders()
        self.traffic.sent_bytes[operation_of(self.command, self.path)] += int(self.headers.get("Content-Length") or 0)
        self._read_body(self.upstream.send)

    def _read_body(self, take: Any) -> None:
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ConnectionResetError("the client hung up")
            left -= len(piece)
            take(piece)

    def _send_back(self) -> None:
        answer = self.upstream.getresponse()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if answer.length is None:
            self.close_connection = True  # the end of the connection is the end of the body
            self.send_header("Connection", "close")
        self.end_headers()
        while piece := answer.read(_PIECE_BYTES):
            self.wfile.write(piece)
        self.wfile.flush()

    def _answer_503(self) -> None:
        self.send_response_only(503, "Slow Down")
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(_SLOW_DOWN)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(_SLOW_DOWN)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass
