"""The Flask extension: the middleware, and a connection for each request.

    app = Flask(__name__)
    app.config["WALCAST_DATABASE"] = "/srv/app.db"
    walcast = Walcast(app)

    @app.get("/")
    def index():
        return render_template("index.html", books=walcast.connection.execute("SELECT …").fetchall())

Every option of `walcast.web.options.Options` can be set as `WALCAST_…` in capitals; the secret is the app's SECRET_KEY.
From an environment (`app.config.from_prefixed_env()`) they are turned into the types that the options have, as in
FLASK_WALCAST_STANDALONE=1.

Where no walcast ever ran beside the database file, as in development and in tests, the app works on that file.
"""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from typing import Any

from flask import Flask, current_app, g, got_request_exception, has_request_context, request
from werkzeug.wrappers import Response

from walcast.connection import PrimaryMoved, ReadOnlyReplica, WritingConnection
from walcast.errors import ConfigError, Unavailable
from walcast.locked import explain_locked
from walcast.replica import Replica
from walcast.statedir import behind_link
from walcast.web.beside import may_be_alone
from walcast.web.core import Request
from walcast.web.options import Options
from walcast.web.typed import typed
from walcast.web.wsgi import ENVIRON_KEY, WSGIMiddleware

PREFIX = "WALCAST_"
NAME = "walcast"
STANDALONE = "walcast.standalone"
BUSY_S = 5.0


class Walcast:
    """One for an app, or for several by `init_app`; an app has one database."""

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the middleware around the app. ConfigError when the app's configuration does not say which database."""
        options = _options(app)
        database = options.pop("database", None)
        if not database:
            raise ConfigError("WALCAST_DATABASE is not set: the path of the database, or of its replica, on this host")
        app.extensions[NAME] = Replica(database)
        app.extensions[STANDALONE] = options.get("standalone")
        app.wsgi_app = WSGIMiddleware(app.wsgi_app, database, **options)  # type: ignore[method-assign]
        app.teardown_request(_notice)
        app.teardown_appcontext(_close)
        got_request_exception.connect(_explain, app)
        app.register_error_handler(ReadOnlyReplica, _follow)
        app.register_error_handler(PrimaryMoved, _follow)

    @property
    def replica(self) -> Replica:
        """Of the current app: where it is, how far behind, waiting."""
        found: Replica = current_app.extensions[NAME]
        return found

    @property
    def connection(self) -> sqlite3.Connection:
        """This request's, closed at its end: one that can write where this host answers as the primary, else one that
        cannot. Nothing is committed by itself but what `with connection:` or `commit()` does.

        A request that turns out to write at a replica, as a GET that counts its visitors, is sent to the primary.
        """
        found: sqlite3.Connection | None = g.get(NAME)
        if found is None:
            asked = _asked()
            primary = asked.primary if asked is not None else _is_primary(self.replica)
            found = g.walcast = self.connect() if primary else self.replica.connect()
            found.row_factory = sqlite3.Row
        return found

    def connect(self) -> sqlite3.Connection:
        """A new connection that can write, where this host is the primary. To be closed by the caller."""
        # Every app waits for the primary's checkpoints, as for any other writer.
        connection = sqlite3.connect(self.replica.path, timeout=BUSY_S, factory=WritingConnection)
        connection.database = behind_link(self.replica.path)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection


def _options(app: Flask) -> dict[str, Any]:
    known = {found.name for found in fields(Options)} - {"secrets"} | {"secret", "database"}
    told = {key[len(PREFIX) :].lower(): value for key, value in app.config.items() if key.startswith(PREFIX)}
    for name in told:
        if name not in known:
            raise ConfigError(f"{PREFIX}{name.upper()}: no such option; known: {', '.join(sorted(known))}")
    told = {name: typed(name, value) for name, value in told.items() if value != ""}
    secrets: list[Any] = [app.config.get("SECRET_KEY"), *(app.config.get("SECRET_KEY_FALLBACKS") or [])]
    return {"secret": secrets} | told


def _is_primary(replica: Replica) -> bool:
    try:
        return replica.state() == "primary"
    except Unavailable:  # no node ever ran here
        standalone: bool | None = current_app.extensions[STANDALONE]
        return may_be_alone(behind_link(replica.path), standalone)


def _asked() -> Request | None:
    return request.environ.get(ENVIRON_KEY) if has_request_context() else None


def _notice(error: BaseException | None) -> None:
    """A request that wrote, whatever its method, and also if in a teardown of the app's own, which is done before."""
    asked, connection = _asked(), g.get(NAME)
    if asked is not None and connection is not None and connection.total_changes:
        asked.writes = True


def _close(error: BaseException | None) -> None:
    connection = g.pop(NAME, None)
    if connection is not None:
        connection.close()


def _explain(sender: Flask, exception: BaseException, **_: Any) -> None:
    """A write of the app's own, by a connection of its own, that a replica refused: into the traceback, and the log."""
    explain_locked(exception, behind_link(sender.extensions[NAME].path))


def _follow(error: sqlite3.OperationalError) -> Response:
    """A write that met a replica: the request turned out to write, or the primary's place has moved. It goes there, if
    nothing was written before."""
    asked, connection = _asked(), g.get(NAME)
    if asked is None or (connection is not None and connection.total_changes):
        raise error
    if isinstance(error, ReadOnlyReplica) and (asked.primary or request.content_length):
        raise error  # a connection of the app's own choice, or a body that has been read
    asked.forward = True
    return Response(status=503)  # nobody sees it
