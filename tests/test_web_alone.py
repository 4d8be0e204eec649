"""Apps without walcast, as in development and in tests; and what an app says where something of walcast is amiss."""

from __future__ import annotations

import io
import logging
import os
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.nodes import ENVIRONMENT, PATIENCE_S, poll, primary
from support.users import STRANGER, STRANGER_GROUP, as_user, folder_for_all, needs_root
from support.web_place import Place, place

from walcast.adapters.flask import Walcast
from walcast.errors import ConfigError, NotAllowed, Unavailable
from walcast.primary import Primary
from walcast.statedir import state_dir
from walcast.statusfile import State, read_status
from walcast.web import WSGIMiddleware, answers
from walcast.web.beside import Beside, look_beside
from walcast.web.options import Options
from walcast.web.typed import typed


def plain(folder: Path) -> Path:
    """A database that no node ever served."""
    with closing(sqlite3.connect(folder / "app.db")) as made:
        made.execute("CREATE TABLE books (title)")
    return folder / "app.db"


def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    start("200 OK", [])
    return [b"of the app"]


def post(database: Path, headers: dict[str, str] | None = None, **options: Any) -> tuple[str, str]:
    """Status and body of the answer to a request that writes."""
    found: list[str] = []

    def start(status: str, headers: Any, exc_info: Any = None, /) -> Any:
        found.append(status)

    middleware = WSGIMiddleware(app, database, **{"primary_wait_s": 0, **options})
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"}
    body = middleware(environ | (headers or {}), start)
    return found[0], b"".join(body).decode().strip()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path / "here") as made:
        made.database.touch()
        yield made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "walcast.web")
    return caplog


def errors(said: pytest.LogCaptureFixture) -> list[str]:
    return [str(getattr(record, "error", "")) for record in said.records if record.levelno >= logging.WARNING]


def seen(database: Path) -> Beside:
    try:
        read_status(database)
    except Unavailable as error:
        return look_beside(database, error)
    raise AssertionError("the status can be read")


# No walcast


def test_without_a_state_folder_an_app_writes_the_plain_file_and_says_so_once(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    flask = Flask("developed")
    flask.config["WALCAST_DATABASE"] = os.fspath(plain(tmp_path))
    extension = Walcast(flask)

    @flask.post("/")
    def add() -> str:
        with extension.connection as db:
            db.execute("INSERT INTO books VALUES ('x')")
        return str(extension.connection.execute("SELECT count(*) FROM books").fetchone()[0])

    assert [flask.test_client().post("/").text for _ in range(3)] == ["1", "2", "3"]
    with flask.app_context(), extension.connection as db:  # a command, or a test
        db.execute("INSERT INTO books VALUES ('y')")
    assert [(record.levelno, record.msg) for record in said.records] == [
        (logging.INFO, "no walcast here: the app writes the database by itself")
    ]


def test_a_state_folder_ends_it(tmp_path: Path) -> None:
    database = plain(tmp_path)
    assert post(database)[0] == "200 OK"
    state_dir(database).mkdir()
    assert post(database)[0] == "503 Service Unavailable"


@pytest.mark.parametrize(
    ("headers", "options"),
    [({}, {"standalone": False}), ({"HTTP_WALCAST_FORWARDED": "1"}, {}), ({}, {"primary_url": "http://127.0.0.1:1"})],
)
def test_who_knows_of_other_hosts_is_not_alone_unless_told(
    tmp_path: Path, headers: dict[str, str], options: dict[str, Any]
) -> None:
    assert post(plain(tmp_path), headers, **options)[0] == "503 Service Unavailable"


def test_runserver_works_on_the_plain_file(tmp_path: Path) -> None:
    """A Django project with the middleware and the router, and no node."""
    plain(tmp_path)
    (tmp_path / "site_of_books.py").write_text(
        "import os\n"
        "from django.db import connections\n"
        "from django.http import HttpResponse\n"
        "from django.urls import path\n"
        "from django.views.decorators.csrf import csrf_exempt\n"
        "from walcast.adapters.django import replica_database\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'app.db'},\n"
        "             'replica': replica_database('app.db')}\n"
        "DATABASE_ROUTERS = ['walcast.adapters.django.ReplicaRouter']\n"
        "SECRET_KEY, DEBUG, ROOT_URLCONF = 'secret', True, 'site_of_books'\n"
        "WSGI_APPLICATION = 'wsgi_of_books.application'\n"
        "@csrf_exempt\n"
        "def page(request):\n"
        "    if request.method == 'POST':\n"
        "        connections['default'].cursor().execute(\"INSERT INTO books VALUES ('x')\")\n"
        "    found = connections['replica'].cursor().execute('SELECT count(*) FROM books').fetchone()\n"
        "    return HttpResponse(str(found[0]))\n"
        "urlpatterns = [path('', page)]\n"
    )
    (tmp_path / "wsgi_of_books.py").write_text(
        "from django.core.wsgi import get_wsgi_application\n"
        "from walcast.web import WSGIMiddleware\n"
        "application = WSGIMiddleware(get_wsgi_application(), 'app.db', secret='secret')\n"
    )
    command = [sys.executable, "-u", "-m", "django", "runserver", "--noreload", "--skip-checks", "127.0.0.1:0"]
    environment = ENVIRONMENT | {"DJANGO_SETTINGS_MODULE": "site_of_books", "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "said").open("wb") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)
    try:
        url = poll(lambda: _address(process.pid))
        for count in ("1", "2"):
            with urllib.request.urlopen(f"http://127.0.0.1:{url}/", data=b"", timeout=PATIENCE_S) as answer:
                assert answer.read().decode() == count
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        print((tmp_path / "said").read_text())


def _address(pid: int) -> int:
    """The port on which the process listens; 0 while it does not. Django prints only the one it was asked for."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(fd))  # noqa: PTH115 - no path
        except FileNotFoundError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        parts = line.split()
        if parts[3] == "0A" and f"socket:[{parts[9]}]" in inodes:
            return int(parts[1].rpartition(":")[2], 16)
    return 0


# Something is amiss


def test_a_missing_file_is_said_with_its_path_in_the_log_and_without_it_to_visitors(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    assert post(tmp_path / "none.db") == ("503 Service Unavailable", answers.NO_DATABASE)
    assert [str(tmp_path / "none.db") in error for error in errors(said)] == [True]


def test_a_primary_without_an_app_url_is_named_as_such(here: Place, said: pytest.LogCaptureFixture) -> None:
    assert post(here.database) == ("503 Service Unavailable", answers.NO_WAY)
    assert ["--app-url" in error for error in errors(said)] == [True]


@pytest.mark.parametrize("was", [State.STREAMING, State.PRIMARY])
def test_a_node_that_does_not_run_is_to_be_started(tmp_path: Path, said: pytest.LogCaptureFixture, was: State) -> None:
    with place(tmp_path / "here") as made:
        made.show(was)
    assert post(made.database) == ("503 Service Unavailable", answers.NO_NODE)
    assert ["start it again" in error for error in errors(said)] == [True]


@needs_root
def test_a_user_who_may_not_read_the_status_is_told_so() -> None:
    with folder_for_all(0o777) as folder, place(folder / "here") as made:
        made.database.touch(mode=0o600)
        assert as_user(STRANGER, STRANGER_GROUP, lambda: post(made.database)) == (
            "503 Service Unavailable",
            answers.NOT_ALLOWED,
        )
        found = as_user(STRANGER, STRANGER_GROUP, lambda: seen(made.database))
        assert not found.alone
        assert str(STRANGER) in found.why


@needs_root
def test_a_user_who_may_not_open_the_socket_gets_an_error_of_its_own() -> None:
    with folder_for_all(0o777) as folder:
        database = plain(folder)
        database.chmod(0o666)
        with primary(database):
            assert poll(lambda: Primary(database).status())
            with pytest.raises(NotAllowed):
                as_user(STRANGER, STRANGER_GROUP, lambda: Primary(database).barrier())


# Values from an environment


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("standalone", 1, True), ("standalone", "0", False), ("standalone", "Yes", True), ("standalone", None, None),
        ("monotonic_reads", "off", False), ("max_lag_s", "2.5", 2.5), ("max_lag_s", None, None), ("followers", "2", 2),
        ("cookie", 7, "7"), ("database", 7, "7"), ("private", "/a, /b", ["/a", "/b"]), ("private", ["/a"], ["/a"]),
    ],
)  # fmt: skip
def test_a_variable_becomes_what_the_option_takes(name: str, value: object, expected: object) -> None:
    assert typed(name, value) == expected
    assert type(typed(name, value)) is type(expected)


@pytest.mark.parametrize(("name", "value"), [("standalone", "perhaps"), ("standalone", 2), ("followers", "two")])
def test_a_variable_that_is_no_such_value_is_an_error(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        typed(name, value)


def test_flask_takes_its_settings_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_WALCAST_DATABASE", os.fspath(tmp_path / "none.db"))
    monkeypatch.setenv("FLASK_WALCAST_STANDALONE", "1")
    monkeypatch.setenv("FLASK_WALCAST_MAX_LAG_S", "")
    monkeypatch.setenv("FLASK_SECRET_KEY", "123456")
    flask = Flask("from the environment")
    flask.config.from_prefixed_env()
    Walcast(flask)
    flask.add_url_rule("/", "page", lambda: "here", methods=["POST"])
    assert flask.test_client().post("/").text == "here"


def test_a_secret_of_digits_is_the_same_as_text_and_as_a_number() -> None:
    assert Options.of(secret=123456).secrets == Options.of(secret="123456").secrets != ()
    assert Options.of(secret=[None, "", 7]).secrets == Options.of(secret="7").secrets
    with pytest.raises(ConfigError) as caught:
        Options.of(secret={"key": "hidden"})  # type: ignore[arg-type]
    assert "hidden" not in str(caught.value)
