"""Faults of the layer for apps that a review proved, each kept from coming back."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.nodes import poll, primary

import walcast
from walcast.statedir import StateDir
from walcast.statusfile import State, Status, StatusWriter, read_status
from walcast.web import ASGIMiddleware

NOW = 10**18
SECOND = 10**9


# What a status file says


@pytest.mark.parametrize(
    ("written", "until", "live"),
    [
        (NOW, 0, True),
        (NOW - 6 * SECOND, 0, False),
        (NOW, NOW + SECOND, True),
        (NOW - SECOND, NOW, False),  # a primary that hangs, and whose lease another one may hold by now
        (NOW + SECOND, 0, True),
        (NOW + 3600 * SECOND, 0, False),  # the clock was set back
    ],
)
def test_a_primary_is_alive_no_longer_than_its_tenure_and_not_of_the_future(
    written: int, until: int, live: bool
) -> None:
    status = Status.decode(Status(State.PRIMARY, written_ns=written, until_ns=until).encode())
    assert status is not None
    assert status.is_live(NOW) is live


def test_a_replica_that_was_level_in_the_future_is_as_far_behind_as_can_be() -> None:
    status = Status(State.DISCONNECTED, level_ns=NOW + 3600 * SECOND, written_ns=NOW)
    assert status.lag_ms(NOW) == float("inf")


def test_a_primary_that_is_gone_is_known_as_one(tmp_path: Path) -> None:
    """Its `app_url` is its own app's: a form that is sent there waits for itself."""
    db = tmp_path / "app.db"
    db.touch()
    with closing(StateDir(db)) as state, closing(StatusWriter(state.path)) as writer:
        writer.write(Status(State.PRIMARY, app_url="http://127.0.0.1:1", written_ns=time.time_ns()))
        assert read_status(db).is_own
    gone = read_status(db)
    assert (gone.state, gone.was, gone.is_own) == (State.STOPPED, State.PRIMARY, True)
    assert not Status(State.STREAMING, app_url="http://127.0.0.1:1").is_own


def test_a_database_behind_a_link_is_one_database(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with closing(sqlite3.connect(tmp_path / "data" / "app.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
    link = tmp_path / "current.db"
    link.symlink_to(tmp_path / "data" / "app.db")
    with primary(link):
        for path in (link, tmp_path / "data" / "app.db"):
            assert poll(lambda path=path: walcast.Replica(path).state() == "primary")
            assert walcast.Primary(path).barrier() >= "1-1"
        assert not (tmp_path / "current.db-walcast").exists()


# ASGI


class Commits:
    """Stands for the node on this host: counts what was committed when it was asked for a token."""

    def __init__(self) -> None:
        self.committed = 0

    def barrier(self, followers: int = 0, timeout: float = 0) -> walcast.Token:
        return walcast.Token.of(1, self.committed)


def post(app: Any, db: Path, commits: Commits) -> tuple[list[dict[str, Any]], float]:
    """What is sent for a POST, and when the answer began, in seconds."""
    middleware = ASGIMiddleware(app, db)
    middleware._core.primary = commits  # type: ignore[assignment]
    sent: list[dict[str, Any]] = []
    began_s: list[float] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        began_s.append(time.monotonic())
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "scheme": "http"}
    start_s = time.monotonic()
    asyncio.run(middleware(scope, receive, send))  # type: ignore[arg-type]
    return sent, began_s[0] - start_s


@pytest.fixture
def home(tmp_path: Path) -> Any:
    """A database whose status says that it is the primary's."""
    db = tmp_path / "app.db"
    db.touch()
    with closing(StateDir(db)) as state, closing(StatusWriter(state.path)) as writer:
        writer.write(Status(State.PRIMARY, 1, written_ns=time.time_ns(), name="app", pid=os.getpid()))
        yield db


def test_a_commit_after_the_answer_was_said_is_covered_by_its_token(home: Path) -> None:
    """As of a session that is closed when the endpoint is done."""
    commits = Commits()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        await asyncio.sleep(0)
        commits.committed = 7

    sent, _ = post(app, home, commits)
    assert dict(sent[0]["headers"])[b"walcast-token"] == b"1-7"
    assert sent[1]["body"] == b"done"


def test_work_in_the_background_does_not_hold_the_answer_back(home: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        await asyncio.sleep(1)

    _, began_s = post(app, home, Commits())
    assert began_s < 0.7


def test_an_app_that_fails_to_commit_has_not_answered(home: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError):
        post(app, home, Commits())
