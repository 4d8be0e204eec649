"""The Flask extension under gunicorn: one app on the primary's host, the same one beside a follower."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.nodes import ENVIRONMENT, PATIENCE_S, follower, poll, primary, wait_level

import walcast
from walcast.adapters.flask import Walcast

SECRET = "a secret of both hosts"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def cookie(self) -> str:
        return self.headers.get("set-cookie", "").partition(";")[0]


@dataclass
class Site:
    """Where the app answers in a region."""

    url: str
    db: Path

    def get(self, path: str = "/", cookie: str = "") -> Answer:
        return self.ask(urllib.request.Request(self.url + path, headers={"Cookie": cookie} if cookie else {}))

    def post(self, title: str, path: str = "/") -> Answer:
        return self.ask(urllib.request.Request(self.url + path, data=f"title={title}".encode()))

    def ask(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=20) as found:
                return Answer(found.status, {k.lower(): v for k, v in found.headers.items()}, found.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def free_port() -> tuple[socket.socket, int]:
    """Bound, but nobody listens: gunicorn gets the socket itself."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen(64)
    return made, made.getsockname()[1]


@contextmanager
def served(db: Path, listening: socket.socket, region: str, *flags: str) -> Iterator[None]:
    """The app under gunicorn, with several processes and threads."""
    command = [sys.executable, "-m", "gunicorn", "-w", "2", "--threads", "4", "--no-control-socket", *flags]
    environment = ENVIRONMENT | {"REGION": region, "BOOKS_WALCAST_DATABASE": str(db), "BOOKS_SECRET_KEY": SECRET}
    log = db.parent / f"{region}.gunicorn"
    with log.open("wb") as err:
        fd = listening.fileno()
        process = subprocess.Popen(
            [*command, "--bind", f"fd://{fd}", "support.flask_books:app"],
            env=environment,
            stderr=err,
            pass_fds=[fd],
            cwd=Path(__file__).parent,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        print(log.read_text()[-2000:])


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    folder = tmp_path_factory.mktemp("flask")
    with ExitStack() as stack:
        db, replica = folder / "home" / "app.db", folder / "edge" / "app.db"
        db.parent.mkdir()
        with closing(sqlite3.connect(db)) as made:
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("CREATE TABLE books (id INTEGER PRIMARY KEY, title)")
        home, home_port = free_port()
        edge, edge_port = free_port()
        stack.enter_context(home)
        stack.enter_context(edge)
        node = stack.enter_context(primary(db, "--app-url", f"http://127.0.0.1:{home_port}"))
        stack.enter_context(follower(replica, node.address))
        wait_level(node.address, replica)
        stack.enter_context(served(db, home, "home"))
        stack.enter_context(served(replica, edge, "edge"))
        found = {
            "home": Site(f"http://127.0.0.1:{home_port}", db),
            "edge": Site(f"http://127.0.0.1:{edge_port}", replica),
        }
        for site in found.values():
            assert poll(lambda site=site: site.get().status == 200)
        yield found


def test_reads_are_answered_where_they_arrive(sites: dict[str, Site]) -> None:
    for region, site in sites.items():
        answer = site.get()
        assert answer.facts["region"] == region
        assert "set-cookie" not in answer.headers


def test_what_was_posted_at_the_edge_is_there_at_once_with_the_token(sites: dict[str, Site]) -> None:
    for number in range(20):
        posted = sites["edge"].post(f"book {number}")
        assert (posted.status, posted.facts["region"]) == (200, "home")
        read = sites["edge"].get(cookie=posted.cookie).facts
        assert read["region"] == "edge"
        assert read["titles"][-1] == f"book {number}"


def test_a_forwarded_request_looks_to_the_app_as_it_did_at_the_edge(sites: dict[str, Site]) -> None:
    posted = sites["edge"].post("where from").facts
    assert posted["url"] == sites["edge"].url + "/"
    assert posted["client"] == "127.0.0.1"


def test_a_write_at_home_carries_a_token_for_the_edge(sites: dict[str, Site]) -> None:
    posted = sites["home"].post("at home")
    assert "at home" in sites["edge"].get(cookie=posted.cookie).facts["titles"]


@pytest.mark.parametrize("path", ["/visit", "/late"])
@pytest.mark.parametrize("region", ["home", "edge"])
def test_a_get_that_writes_is_answered_at_home_and_carries_a_token(
    sites: dict[str, Site], region: str, path: str
) -> None:
    before = sites["home"].get().facts["titles"].count("a visit")
    visited = sites[region].get(path)
    assert (visited.status, visited.facts["region"]) == (200, "home")
    assert visited.cookie.startswith("walcast-app")
    assert sites["edge"].get(cookie=visited.cookie).facts["titles"].count("a visit") == before + 1


def test_an_error_of_the_app_stays_an_error_of_the_app(sites: dict[str, Site]) -> None:
    assert [site.post("x", "/broken").status for site in sites.values()] == [500, 500]


def test_a_token_of_others_is_none(sites: dict[str, Site]) -> None:
    """Nobody waits for what a visitor made up: the cookie is signed with the app's secret."""
    answer = sites["edge"].get(cookie="walcast=ffff-ffffffffffff")
    assert (answer.status, answer.facts["region"]) == (200, "edge")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "WALCAST_DATABASE is not set"),
        ({"WALCAST_DATABASE": "app.db", "WALCAST_MAX_LAGS": 1}, "WALCAST_MAX_LAGS: no such option"),
        ({"WALCAST_DATABASE": "app.db", "WALCAST_ON_LAG": "never"}, "'primary' or 'stale'"),
        ({"WALCAST_DATABASE": "app.db", "WALCAST_PRIMARY_URL": "10.0.0.1"}, "not where an app answers"),
        ({"WALCAST_DATABASE": "app.db", "WALCAST_PRIMARY_URL": "http://10.0.0.1"}, "plain http beyond this machine"),
        ({"WALCAST_DATABASE": "app.db", "WALCAST_ALLOWED_APP_URLS": "https://a"}, "a sequence of origins or hosts"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(config: dict[str, Any], words: str) -> None:
    app = Flask("wrong")
    app.config.update(config)
    with pytest.raises(walcast.ConfigError, match=words):
        Walcast(app)


def plain_database(folder: Path) -> Path:
    """That no node ever served."""
    with closing(sqlite3.connect(folder / "app.db")) as made:
        made.execute("CREATE TABLE IF NOT EXISTS books (title)")
    return folder / "app.db"


def test_without_a_request_and_a_node_a_database_is_read_only_if_so_told(tmp_path: Path) -> None:
    """In a shell, or in a job."""
    app = Flask("job")
    app.config |= {"WALCAST_DATABASE": os.fspath(plain_database(tmp_path)), "WALCAST_STANDALONE": False}
    extension = Walcast(app)
    with app.app_context():
        assert extension.connection.execute("SELECT count(*) FROM books").fetchone()[0] == 0
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            extension.connection.execute("INSERT INTO books VALUES ('x')")


def test_where_no_node_ever_ran_an_app_is_standalone_or_not_as_it_says(tmp_path: Path) -> None:
    for standalone, status in ((False, 503), (True, 204)):
        app = Flask("developed")
        app.config["WALCAST_DATABASE"] = os.fspath(plain_database(tmp_path))
        app.config |= {"WALCAST_STANDALONE": standalone, "WALCAST_PRIMARY_WAIT_S": 0}
        extension = Walcast(app)

        @app.post("/")
        def add(extension: Walcast = extension) -> tuple[str, int]:
            with extension.connection as db:
                db.execute("INSERT INTO books VALUES ('x')")
            return "", 204

        answer = app.test_client().post("/")
        assert answer.status_code == status
        assert "Set-Cookie" not in answer.headers
