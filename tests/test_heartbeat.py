"""The heartbeat: pings while every database is archived in time, silence when not, harm never."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.folders import serving, write
from support.nodes import PATIENCE_S, poll, primary

import walcast_node.process.heartbeat
from walcast.secret import Secret
from walcast_node.cli import main
from walcast_node.process.heartbeat import Heartbeat


class Monitor:
    """What a monitor is told; `status` is what it answers, None: it hangs up."""

    def __init__(self) -> None:
        self.pings: list[float] = []
        self.paths: set[str] = set()
        self.status: int | None = 200
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                monitor.pings.append(time.monotonic())
                monitor.paths.add(self.path)
                if monitor.status is not None:
                    self.send_response(monitor.status)
                    self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/ping/s3cr3t?x=1"

    def wait(self, more: int = 1, seconds: float = PATIENCE_S) -> bool:
        """Until it was told that often again."""
        goal = len(self.pings) + more
        return bool(poll(lambda: len(self.pings) >= goal, seconds))


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with running(Monitor()) as made:
        yield made


@contextmanager
def running(monitor: Monitor) -> Iterator[Monitor]:
    thread = threading.Thread(target=monitor.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield monitor
    finally:
        monitor.server.shutdown()
        monitor.server.server_close()
        thread.join()


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    facts = [(r.getMessage(), getattr(r, "reason", None) or getattr(r, "missed", "")) for r in caplog.records]
    return [fact for fact in facts if fact[0].startswith(("no heartbeat", "heartbeat"))]


def test_it_beats_at_its_interval_while_all_is_well_and_as_soon_as_it_is(
    monitor: Monitor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "walcast.heartbeat")
    monkeypatch.setattr(walcast_node.process.heartbeat, "LOOK_AGAIN_S", 0.02)
    wrong: list[str | None] = [None]
    asked: list[None] = []

    def trouble() -> str | None:
        asked.append(None)
        return wrong[0]

    beat = Heartbeat(Secret(monitor.url), 0.1, trouble).start()
    try:
        assert monitor.wait(4)
        gaps = [later - sooner for sooner, later in zip(monitor.pings, monitor.pings[1:], strict=False)]
        assert min(gaps) > 0.05
        wrong[0] = "app.db: no space"
        looks = len(asked)
        assert poll(lambda: len(asked) > looks + 2)
        pings = len(monitor.pings)
        assert poll(lambda: len(asked) > looks + 10)
        assert len(monitor.pings) == pings
        wrong[0] = None
        assert monitor.wait(2)
        assert monitor.paths == {"/ping/s3cr3t?x=1"}
        assert messages(caplog) == [("no heartbeat", "app.db: no space"), ("heartbeat again", "app.db: no space")]
    finally:
        beat.stop()


@pytest.mark.parametrize(("status", "words"), [(500, "answered 500"), (404, "answered 404"), (None, "failed")])
def test_a_monitor_that_fails_is_told_again_and_logged_once(
    monitor: Monitor,
    status: int | None,
    words: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "walcast.heartbeat")
    monkeypatch.setattr(walcast_node.process.heartbeat, "RETRY_S", 0.02)
    monitor.status = status
    beat = Heartbeat(Secret(monitor.url), 60.0, lambda: None).start()
    try:
        assert monitor.wait(3)
        assert [(event, words in why) for event, why in messages(caplog)] == [("no heartbeat", True)]
        assert "s3cr3t" not in caplog.text
        monitor.status = 200
        assert poll(lambda: len(messages(caplog)) == 2)
    finally:
        beat.stop()


def test_a_primary_is_silent_while_its_archive_takes_nothing(tmp_path: Path, monitor: Monitor) -> None:
    db, archive = tmp_path / "app.db", tmp_path / "archive"
    write(db, 1)
    flags = ("--heartbeat-url", monitor.url, "--heartbeat-interval", "1")
    with primary(db, archive, *flags) as node:
        assert monitor.wait(1)
        archive.rename(tmp_path / "away")
        archive.write_text("no folder any more")
        write(db, 2)
        node.wait_event("no heartbeat")
        pings = len(monitor.pings)
        write(db, 3)
        assert not monitor.wait(1, 1.2)
        assert len(monitor.pings) == pings
        archive.unlink()
        (tmp_path / "away").rename(archive)
        assert monitor.wait(1)
        node.wait_event("heartbeat again")
        assert len(node.events("no heartbeat")) == len(node.events("heartbeat again")) == 1
        assert "s3cr3t" not in node.err.read_text()


@pytest.mark.slow
def test_one_database_of_a_watched_folder_that_cannot_be_served_stops_it(tmp_path: Path, monitor: Monitor) -> None:
    write(tmp_path / "data" / "app.db", 1)
    config = tmp_path / "walcast.yml"
    config.write_text(
        f"heartbeat-url: {monitor.url}\nheartbeat-interval: 1s\n"
        f"dbs: [{{dir: {tmp_path}/data, pattern: '*.db', watch: true, archive: {tmp_path}/archive}}]\n"
    )
    with serving(config) as node:
        assert monitor.wait(1)
        write(tmp_path / "data" / "other.db", 1)
        node.wait_event("serving", 2)
        (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + b"garbage " * 600)
        (tmp_path / "bad.db").replace(tmp_path / "data" / "other.db")
        node.wait_event("no heartbeat")
        (tmp_path / "data" / "other.db").unlink()
        node.wait_event("heartbeat again")
        assert monitor.wait(1)


def test_a_database_without_an_archive_beside_a_heartbeat_is_refused(tmp_path: Path, monitor: Monitor) -> None:
    write(tmp_path / "app.db", 1)
    config = tmp_path / "walcast.yml"
    config.write_text(f"dbs:\n- path: {tmp_path}/app.db\n  archive: /x\n- {{dir: {tmp_path}, pattern: '*'}}\n")

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["primary", *arguments])
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        return done.stderr

    assert "this one has no archive" in said(f"{tmp_path}/app.db", "--heartbeat-url", monitor.url)
    assert said("--config", str(config), "--heartbeat-url", monitor.url).startswith(f"error: {config}:4: ")
    where = (f"{tmp_path}/app.db", f"{tmp_path}/archive")
    assert "an http or https URL belongs there" in said(*where, "--heartbeat-url", "ftp://x/y")
    config.write_text(f"heartbeat-url: {monitor.url}\ndbs:\n- path: {tmp_path}/app.db\n")
    assert said("--config", str(config)).startswith(f"error: {config}:3: ")
    assert monitor.pings == []
