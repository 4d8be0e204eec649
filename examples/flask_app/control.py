"""The runner's own server: the page behind the page asks here what is, and says here what is to be done.

On loopback, and only for whoever knows the key; that are the apps, which look after forms from other sites.
"""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from examples.flask_app.stage import Facts, Refused, Stage

MOST_BYTES = 1 << 16
REQUEST_S = 10.0


class Control:
    """GET /state; POST /distances, /line, /kill, /back with JSON. What is refused is answered `{"error": why}`, 409."""

    def __init__(self, stage: Stage, key: str) -> None:
        class Answering(BaseHTTPRequestHandler):
            timeout = REQUEST_S

            def do_GET(self) -> None:
                self._answer(lambda: stage.state() if self.path == "/state" else None)

            def do_POST(self) -> None:
                self._answer(lambda: _do(stage, self.path, self._fields()))

            def _fields(self) -> Facts:
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 <= length <= MOST_BYTES:
                    raise Refused(f"At most {MOST_BYTES} bytes are read.")
                fields = json.loads(self.rfile.read(length) or b"{}")
                if not isinstance(fields, dict):
                    raise Refused("An object belongs there.")
                return fields

            def _answer(self, find: Callable[[], Facts | None]) -> None:
                if not hmac.compare_digest(self.headers.get("X-Lab-Key", "").encode(), key.encode()):
                    return self._say(HTTPStatus.FORBIDDEN, {"error": "wrong key"})
                try:
                    found = find()
                except (Refused, ValueError) as error:
                    return self._say(HTTPStatus.CONFLICT, {"error": str(error)})
                return self._say(
                    HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND, found or {"error": "unknown"}
                )

            def _say(self, code: HTTPStatus, facts: Facts) -> None:
                data = json.dumps(facts).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _do(stage: Stage, path: str, fields: Facts) -> Facts | None:
    """None for what is not known."""
    match path:
        case "/distances":
            stage.set_distances(fields)
        case "/line":
            stage.write_line(str(fields.get("text", ""))[:100])
        case "/kill":
            return stage.kill()
        case "/back":
            return stage.bring_back()
        case _:
            return None
    return {"done": True}
