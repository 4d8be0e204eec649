"""A small HTTP server for people's monitors: `/healthz` (200 or 503) and `/status` (the JSON of `walcast status`)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from walcast.errors import ConfigError
from walcast.wire import Address

REQUEST_TIMEOUT_S = 5.0

Facts = dict[str, Any]


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
            self._server = ThreadingHTTPServer((address.host.strip("[]"), address.port), Handler)
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
