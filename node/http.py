"""A small HTTP server for people's monitors: `/healthz` (200 or 503) and `/status` (the JSON of `walcast status`)."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from walcast.errors import ConfigError
from walcast.rarely import Rarely
from walcast.shortage import reason
from walcast.wire import Address

REQUEST_TIMEOUT_S = 5.0  # for each wait
TOTAL_S = 15.0  # for a request as a whole
MAX_REQUESTS = 32
ACCEPT_AGAIN_S = 0.5

Facts = dict[str, Any]

log = logging.getLogger("walcast.http")


class _Bounded(ThreadingHTTPServer):
    """Answers MAX_REQUESTS at a time and hangs up on the others; none may take longer than TOTAL_S."""

    request_queue_size = 2 * MAX_REQUESTS

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._since_s: dict[socket.socket, float] = {}
        self._rarely = Rarely(log)
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:  # no descriptors are left; the connection stays in the backlog
            self._rarely.log(logging.WARNING, "cannot answer over HTTP", "accept", {"error": reason(error)})
            time.sleep(ACCEPT_AGAIN_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._since_s) >= MAX_REQUESTS:
            self.shutdown_request(request)
            return
        self._since_s[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called every half second: hang up on requests that take too long, such as one sent byte by byte."""
        for request, since_s in list(self._since_s.items()):
            if time.monotonic() - since_s > TOTAL_S:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):  # a client that hung up
            facts = {"error": reason(error)}
            self._rarely.log(logging.WARNING, "cannot answer over HTTP", type(error).__name__, facts)


class HttpServer:
    """Answers in threads of its own; `facts` must be safe to call from them, `failure` says what is wrong, or None."""

    def __init__(self, address: Address, facts: Callable[[], Facts], failure: Callable[[], str | None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_TIMEOUT_S
            server_version = "walcast"

            def do_GET(self) -> None:
                if self.path == "/healthz":
                    wrong = failure()
                    self._answer(HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK, {"error": wrong})
                elif self.path == "/status":
                    self._answer(HTTPStatus.OK, facts())
                else:
                    self._answer(HTTPStatus.NOT_FOUND, {"error": "there is /healthz and /status"})

            def _answer(self, code: HTTPStatus, body: Facts) -> None:
                data = json.dumps(body).encode() + b"\n"
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        try:
            self._server = _Bounded((address.host.strip("[]"), address.port), Handler)
        except OSError as error:
            raise ConfigError(f"cannot serve HTTP on {address}: {error.strerror}") from error
        self._server.daemon_threads = True
        self.listening = Address(address.host, self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
