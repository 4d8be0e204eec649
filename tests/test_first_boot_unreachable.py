"""A first boot whose archive cannot be reached: tried again, and the app does not make an empty database instead."""

from __future__ import annotations

import asyncio
import json
import math
import queue
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.folders import rows, serving, status, wait_served, write
from support.nodes import LOOPBACK, Node, poll, walcast
from support.s3 import CountedS3, counted_s3

from walcast.errors import Unavailable
from walcast.statedir import state_dir
from walcast.terms import PRIMARY, Standing, write_standing
from walcast_node.cli import main
from walcast_node.config.settings import DatabaseSettings
from walcast_node.process import first_boot
from walcast_node.process.first_boot import restore_when_reachable
from walcast_node.process.stop_deadline import SLACK_S, StopDeadline

TRYING = "cannot restore the database yet, trying again"


@contextmanager
def archived(folder: Path) -> Iterator[CountedS3]:
    """A store whose archive `db` has a database of two rows."""
    write(folder / "first.db", 1, 2)
    with counted_s3(folder / "s3") as s3:
        assert walcast("snapshot", folder / "first.db", s3.url(), env=s3.environment()).returncode == 0
        yield s3


@contextmanager
def started(folder: Path, s3: CountedS3, *arguments: str | Path) -> Iterator[Node]:
    """A primary with an app; not ready yet."""
    more = ["--listen", LOOPBACK, "--exec", "sleep 60", "--json", "--log-format", "json"]
    node = Node(["primary", *map(str, arguments), *more], folder, "primary", s3.environment())
    try:
        yield node.start()
    finally:
        node.end()


def test_a_restore_is_tried_again_while_the_archive_is_away_and_the_app_waits_for_it(tmp_path: Path) -> None:
    db = tmp_path / "app.db"
    with archived(tmp_path) as s3:
        s3.traffic.start_outage("close")
        with started(tmp_path, s3, db, s3.url(), "--restore") as node:
            node.wait_event(TRYING)
            address = node.wait_event("listening")["address"]
            [database] = json.loads(walcast("status", address, "--json").stdout)["databases"]
            assert (database["role"], database["troubles"][0]["kind"]) == ("primary", "not-served")
            assert not node.events("started the app")
            s3.traffic.end_outage()
            assert node.ready()["databases"] == ["app"]
            assert node.wait_event("started the app")
            assert rows(db) == [1, 2]
            node.stop()


def test_one_of_several_that_cannot_be_restored_yet_holds_up_the_app_alone(tmp_path: Path) -> None:
    write(tmp_path / "here.db", 1)
    file = tmp_path / "walcast.yml"
    with archived(tmp_path) as s3:
        file.write_text(
            f"dbs:\n- path: {tmp_path}/here.db\n"
            f"- {{path: {tmp_path}/app.db, archive: '{s3.url()}', restore-if-db-not-exists: true}}\n"
        )
        s3.traffic.start_outage("close")
        with started(tmp_path, s3, "--config", file) as node:
            assert node.ready()["databases"] == ["here"]
            assert not node.events("started the app")
            s3.traffic.end_outage()
            assert node.wait_event("started the app")
            assert rows(tmp_path / "app.db") == [1, 2]
            node.stop()


def test_a_member_of_several_that_is_missing_is_restored_and_not_again_when_it_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "first.db", 1, 2)
    assert walcast("snapshot", tmp_path / "first.db", tmp_path / "archive").returncode == 0
    for name in ("here", "app"):
        state = state_dir(tmp_path / f"{name}.db")
        state.mkdir(mode=0o700)
        write_standing(state, Standing(PRIMARY, 1, history=()))  # as after a failover
    write(tmp_path / "here.db", 1)
    file = tmp_path / "walcast.yml"
    file.write_text(
        f"dbs:\n- path: {tmp_path}/here.db\n"
        f"- {{path: {tmp_path}/app.db, archive: {tmp_path}/archive, restore-if-db-not-exists: true}}\n"
    )
    with serving(file) as node:
        wait_served(node, "app", "here")
        assert rows(tmp_path / "app.db") == [1, 2]
        for path in tmp_path.glob("app.db*"):
            if path.is_file():
                path.unlink()
        assert poll(lambda: status(node)["app"]["trouble"], 10.0, 0.05)
        assert not (tmp_path / "app.db").exists()


def test_what_is_wrong_with_the_archive_for_good_ends_the_process_at_once(tmp_path: Path) -> None:
    with archived(tmp_path) as s3:
        url = s3.spec(bucket="other-bucket").url
        with started(tmp_path, s3, tmp_path / "app.db", url, "--restore") as node:
            assert node.wait() == 1
            assert not node.events(TRYING)


def test_a_stop_does_not_wait_for_a_store_that_hangs(tmp_path: Path) -> None:
    with archived(tmp_path) as s3:
        s3.traffic.start_outage("hang")
        before = s3.traffic.requests.total()
        with started(tmp_path, s3, tmp_path / "app.db", s3.url(), "--restore") as node:
            assert poll(lambda: s3.traffic.requests.total() > before)
            began_s = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - began_s < 5.0
        s3.traffic.end_outage()


def test_it_is_tried_for_as_long_as_the_app_would_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[bool] = []
    said: list[str | None] = []

    def restore_missing(*_: object) -> bool:
        tries.append(True)
        if len(tries) < 3:
            raise Unavailable("no route to host")
        return True

    def run(wait_s: float) -> bool:
        settings = DatabaseSettings(tmp_path / "app.db", "app", "/archive", restore=True, wait_s=wait_s)
        return asyncio.run(restore_when_reachable(settings, lambda: False, said.append))

    monkeypatch.setattr(first_boot, "restore_missing", restore_missing)
    monkeypatch.setattr(first_boot, "RETRY_S", (0.0,))
    assert run(math.inf)
    assert (len(tries), said[0] is not None, said[-1]) == (3, True, None)
    tries.clear()
    with pytest.raises(Unavailable):
        run(0.0)
    assert len(tries) == 1


def test_a_stop_that_hangs_is_ended() -> None:
    ended: queue.Queue[int] = queue.Queue()
    deadline = StopDeadline(-SLACK_S, ended.put)
    deadline.begin()
    deadline.begin()
    assert ended.get(timeout=10.0) == 1
    assert ended.empty()


def test_a_stop_that_came_to_its_end_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes on, as one that runs the command as a function, must not be ended later."""
    ended: list[StopDeadline] = []
    reached = StopDeadline.reached
    monkeypatch.setattr(StopDeadline, "reached", lambda self: (ended.append(self), reached(self)))
    write(tmp_path / "app.db", 1)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = CliRunner().invoke(main, ["primary", str(tmp_path / "app.db"), "--listen", address])
    assert done.exit_code == 1
    timer = ended[0]._timer
    assert timer is not None
    timer.join(5.0)
    assert not timer.is_alive()
