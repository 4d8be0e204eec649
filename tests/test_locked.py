"""The error that an app gets which writes to a replica by itself is explained, in its traceback and in the log."""

from __future__ import annotations

import io
import logging
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from django.core.signals import got_request_exception
from flask import Flask
from support.web_place import Place, place

from walcast.adapters.flask import Walcast
from walcast.locked import explain_locked
from walcast.statusfile import State
from walcast.web import WSGIMiddleware


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    """A replica, whose primary is at 10.0.0.1; somebody holds SQLite's write lock, as the follower does."""
    with place(tmp_path / "host") as found, closing(sqlite3.connect(found.database, isolation_level=None)) as holder:
        holder.execute("PRAGMA journal_mode = WAL")
        holder.execute("CREATE TABLE books (title)")
        holder.execute("BEGIN IMMEDIATE")
        found.show(primary="10.0.0.1:7420", app_url="https://10.0.0.1:8443")
        yield found


def write(database: Path) -> None:
    with closing(sqlite3.connect(database, timeout=0)) as own:
        own.execute("INSERT INTO books VALUES ('x')")


def failed(database: Path) -> sqlite3.OperationalError:
    with pytest.raises(sqlite3.OperationalError) as caught:
        write(database)
    return caught.value


def test_what_a_replica_refuses_says_where_to_write(here: Place, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        error = failed(here.database)
        assert explain_locked(error, here.database)
        explain_locked(error, here.database)
        [note] = error.__notes__
        assert "10.0.0.1:7420" in note
        assert "https://10.0.0.1:8443" in note
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1  # rarely


def test_a_slow_writer_of_a_primary_is_nothing_to_explain(here: Place, tmp_path: Path) -> None:
    here.show(State.PRIMARY)
    assert explain_locked(failed(here.database), here.database) is None
    here.show(State.FENCED)
    assert "lease" in (explain_locked(failed(here.database), here.database) or "")
    assert explain_locked(failed(here.database), tmp_path / "none.db") is None
    assert explain_locked(ValueError("locked"), here.database) is None


def test_an_error_that_a_library_wrapped_is_explained(here: Place) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{here.database}", connect_args={"timeout": 0})
    with pytest.raises(sqlalchemy.exc.OperationalError) as caught, engine.begin() as connection:
        connection.execute(sqlalchemy.text("INSERT INTO books VALUES ('x')"))
    engine.dispose()
    assert explain_locked(caught.value, here.database)
    assert "promote" in "".join(traceback.format_exception(caught.value))


def test_the_traceback_that_flask_logs_has_it(here: Place) -> None:
    app = Flask(__name__)
    app.config["WALCAST_DATABASE"] = str(here.database)
    Walcast(app)
    logged = io.StringIO()
    app.logger.addHandler(logging.StreamHandler(logged))

    @app.get("/")
    def count() -> str:
        write(here.database)
        return "written"

    assert app.test_client().get("/").status_code == 500
    assert "is a replica on this host" in logged.getvalue()


def test_what_django_reports_has_it(here: Place) -> None:
    adapter = pytest.importorskip("walcast.adapters.django")
    adapter.replica_database(here.database)
    error = failed(here.database)
    try:
        raise error
    except sqlite3.OperationalError:
        got_request_exception.send(sender=None, request=None)
    assert "is a replica on this host" in error.__notes__[0]


def test_an_error_that_passes_the_middleware_has_it(here: Place) -> None:
    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        write(here.database)
        return []

    middleware = WSGIMiddleware(app, here.database)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"}
    with pytest.raises(sqlite3.OperationalError) as caught:
        middleware(environ, lambda *_: lambda _: None)
    assert caught.value.__notes__
