"""The example's app as a server starts it, with and without walcast; and a browser's worth of requests against it.

gunicorn 'bench.apps:attached()'           as it is: extension, middleware, replica
gunicorn 'bench.apps:bare()'               the same pages from a plain file by plain sqlite3
python -m bench.apps load URL SECONDS N    GET it over N connections that stay open; prints requests and seconds
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import threading
import time
from urllib.parse import urlsplit

from flask import Flask, g

from examples.flask_app import app as example
from walcast.replica import Replica


class Plain:
    """In place of the extension: what the app did before it had one."""

    def init_app(self, app: Flask) -> None:
        """Only closes the connection."""
        self.replica = Replica(app.config["WALCAST_DATABASE"])
        app.teardown_appcontext(lambda error: g.db.close() if "db" in g else None)

    @property
    def connection(self) -> sqlite3.Connection:
        """One a request."""
        if "db" not in g:
            g.db = sqlite3.connect(self.replica.path)
            g.db.row_factory = sqlite3.Row
        db: sqlite3.Connection = g.db
        return db


def attached() -> Flask:
    """The app as it is."""
    return example.create_app()


def bare() -> Flask:
    """Without walcast."""
    example.walcast = Plain()  # type: ignore[assignment]
    return example.create_app()


def load(url: str, seconds: str, connections: str) -> dict[str, float]:
    """Requests that were answered with 200, and for how long."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n".encode()
    counts = [0] * int(connections)
    begin = time.monotonic()
    end = begin + float(seconds)

    def one(number: int) -> None:
        while time.monotonic() < end:
            with socket.create_connection((host, port), timeout=10) as made:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while time.monotonic() < end and ask(made, request):
                    counts[number] += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"requests": sum(counts), "seconds": time.monotonic() - begin}


def ask(made: socket.socket, request: bytes) -> bool:
    """One answer of known length, with 200; False when the server ends the connection."""
    made.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        more = made.recv(65536)
        if not more:
            return False
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"not 200: {head[:200]!r}")
    left = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0]) - len(body)
    while left > 0:
        more = made.recv(65536)
        if not more:
            return False
        left -= len(more)
    return b"connection: close" not in lower


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(load(*line.split())), flush=True)
    os._exit(0)
