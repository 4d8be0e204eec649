"""A WSGI app behind the middleware, as an app server starts it: one site for each host name of WEB_SITES.

    WEB_SITES='{"edge": {"database": "/…/app.db", "options": {…}}}'      Host: edge

What it answers says what it was asked; it writes to the database only where it answers as the primary.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from walcast.replica import Replica
from walcast.web import WSGIMiddleware

logging.basicConfig(level=logging.INFO, format="%(message)s")  # tests wait for what is logged

SITES: dict[str, dict[str, Any]] = json.loads(os.environ["WEB_SITES"])
CHUNK = 64 << 10
BUSY_S = 2.0
SHOWN = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "REMOTE_ADDR", "CONTENT_TYPE")


class App:
    """Of one site."""

    def __init__(self, name: str, database: str) -> None:
        self.name = name
        self.database = database

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/bytes/"):
            start_response("200 OK", [("Content-Type", "application/octet-stream")])
            return zeros(int(path.rpartition("/")[2]))
        if path == "/notes" and environ["REQUEST_METHOD"] == "GET":
            found = notes(Replica(self.database).connect())
            return self.answer(start_response, {"notes": found, "region": self.name})
        if path == "/visit":
            return self.visit(environ, start_response)
        size, digest = drained(environ["wsgi.input"])
        if path == "/notes":
            return self.add(environ, start_response)
        facts = {key: environ.get(key, "") for key in SHOWN} | {"scheme": environ["wsgi.url_scheme"]}
        facts |= {"region": self.name, "size": size, "sha256": digest}
        facts["headers"] = {key[5:]: value for key, value in environ.items() if key.startswith("HTTP_")}
        return self.answer(start_response, facts)

    def answer(self, start_response: Callable[..., Any], facts: object, status: str = "200 OK") -> Iterable[bytes]:
        body = json.dumps(facts).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def add(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """One more note, of the name in the query."""
        row = added(self.database, environ["QUERY_STRING"])
        if row is None:
            environ["walcast.request"].forward = True
            start_response("500 Never Seen", [])
            return [b"never seen"]
        return self.answer(start_response, {"id": row, "region": self.name}, "201 Created")

    def visit(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """A GET that writes."""
        request = environ["walcast.request"]
        if not request.primary:
            request.forward = True
            start_response("500 Never Seen", [("Set-Cookie", "never=seen")])
            return [b"never seen"]
        request.writes = True
        return self.add(environ, start_response)


def drained(stream: Any) -> tuple[int, str]:
    """Size and digest of all of it."""
    size, digest = 0, hashlib.sha256()
    while chunk := stream.read(CHUNK):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


def zeros(count: int) -> Iterator[bytes]:
    for begin in range(0, count, CHUNK):
        yield bytes(min(CHUNK, count - begin))


def added(database: str, name: str) -> int | None:
    """The id of one more note; None when the database is locked for good."""
    db = sqlite3.connect(database, timeout=BUSY_S)
    try:
        with db:
            return db.execute("INSERT INTO notes (name) VALUES (?)", [name]).lastrowid
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return None
    finally:
        db.close()


def notes(db: sqlite3.Connection) -> list[str]:
    try:
        return [name for (name,) in db.execute("SELECT name FROM notes ORDER BY id")]
    finally:
        db.close()


MIDDLEWARES = {
    name: WSGIMiddleware(App(name, site["database"]), site["database"], **site["options"])
    for name, site in SITES.items()
}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The site that is asked for; below /mounted the same one is mounted."""
    site = MIDDLEWARES[environ.get("HTTP_HOST", "").partition(":")[0]]
    if environ["PATH_INFO"].startswith("/mounted"):
        environ["SCRIPT_NAME"] += "/mounted"
        environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix("/mounted")
    return site(environ, start_response)
