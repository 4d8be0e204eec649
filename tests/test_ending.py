"""The end of a primary, and of a follower: what was committed before has gone out, and the log says what has not."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import quick_node
from support.nodes import LOOPBACK, Node, follower, poll, position_of, primary, wait_level
from support.s3 import CountedS3, counted_s3

from walcast.position import Position, format_txid
from walcast.restore import restore
from walcast.statusfile import read_status
from walcast.store import open_store
from walcast_node.config.settings import STOP_TIMEOUT_S
from walcast_node.process import draining

WHOLE = "stopping: everything went out"
PARTS = "stopping: not everything went out"
SLACK_S = 5.0  # for a machine that does much else
REPEATED = 2


def made(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE orders (n INTEGER PRIMARY KEY)")
    return db


@contextmanager
def writer(path: Path) -> Iterator[None]:
    """An app that commits without a pause."""
    stop = threading.Event()

    def run() -> None:
        db = sqlite3.connect(path, isolation_level=None)
        while not stop.is_set():
            db.execute("INSERT INTO orders VALUES (NULL)")
        db.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def archived(url: Path, copy: Path) -> int:
    copy.unlink(missing_ok=True)
    with open_store(str(url)) as store:
        restore(store, copy)
    return count(copy)


def count(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        [number] = db.execute("SELECT count(*) FROM orders").fetchone()
        return int(number)
    finally:
        db.close()


def test_what_was_committed_before_the_signal_is_archived_and_at_the_follower(tmp_path: Path) -> None:
    db, archive, replica = made(tmp_path / "app.db"), tmp_path / "archive", tmp_path / "edge" / "app.db"
    with primary(tmp_path / "app.db", archive) as home, follower(replica, home.address) as edge:
        for number in range(REPEATED):
            if number:
                home.start().ready()
            wait_level(home.address, replica)
            edge.wait_event("streaming", number + 1)
            db.execute("INSERT INTO orders VALUES (?)", (number,))  # a millisecond later the signal
            assert home.stop() == 0
            said = home.wait_event(WHOLE, number + 1)
            position = Position.parse(said["position"])
            assert list(said["followers"].values()) == [format_txid(position.txid)]
            assert said["archived_txid"] == position.txid
            assert archived(archive, tmp_path / "back.db") == number + 1
            assert poll(lambda at=position: position_of(replica) == at)
            assert count(replica) == number + 1
        home.start().ready()
        began_s = time.monotonic()
        with writer(tmp_path / "app.db"):  # it never comes to an end of what is committed
            code = home.stop()
        assert code == 0
        assert time.monotonic() < began_s + STOP_TIMEOUT_S
        said = home.wait_event(WHOLE, REPEATED + 1)
        assert said["seconds"] < 1.0 + draining.FOLLOWERS_S
        assert edge.stop() == 0
        assert edge.wait_event("stopping: everything received is applied and synced")["position"] == str(
            read_status(replica).position
        )
    db.close()


@dataclass
class Hanging:
    """A primary with times a fifth as long, whose archive and whose follower may hang."""

    db: sqlite3.Connection
    primary: Node
    follower: Node
    replica: Path
    s3: CountedS3

    def end(self) -> tuple[int, float, dict[str, Any]]:
        """SIGTERM: exit code, seconds, what the log says."""
        self.db.execute("INSERT INTO orders VALUES (NULL)")
        began_s = time.monotonic()
        code = self.primary.stop()
        return code, time.monotonic() - began_s, self.primary.wait_event(PARTS)


@contextmanager
def hanging(directory: Path) -> Iterator[Hanging]:
    with ExitStack() as stack:
        s3 = stack.enter_context(counted_s3(directory / "s3"))
        db = made(directory / "app.db")
        stack.callback(db.close)
        more = ["--json", "--log-format", "json"]
        flags = ["primary", str(directory / "app.db"), s3.url(), "--listen", LOOPBACK, *more]
        home = Node(flags, directory, "primary", s3.environment(), "quick_node.py")
        stack.callback(home.start().end)
        home.address = home.ready()["listen"]
        replica = directory / "edge" / "app.db"
        edge = stack.enter_context(follower(replica, home.address))
        home.wait_event("archived a snapshot")
        wait_level(home.address, replica)
        yield Hanging(db, home, edge, replica, s3)


def test_a_store_and_a_follower_that_hang_are_said_and_hold_up_the_end_for_a_bounded_time(tmp_path: Path) -> None:
    with hanging(tmp_path) as it:
        it.follower.signal(signal.SIGSTOP)
        with it.s3.traffic.outage("hang"):
            code, seconds, said = it.end()
        assert code == 1  # something is not archived
        assert seconds < STOP_TIMEOUT_S * quick_node.SCALE + SLACK_S
        assert said["level"] == "warning"
        archive, behind = said["archived_txid"], list(said["followers"].values())
        assert archive < Position.parse(said["position"]).txid
        assert behind == [format_txid(archive)]
        assert [what.split(" is at")[0].split(" ")[1] for what in said["missing"]] == ["follower", "archive"]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with hanging(tmp_path) as it, it.s3.traffic.outage("hang"):
        it.db.execute("INSERT INTO orders VALUES (NULL)")
        assert poll(lambda: it.primary.signal(signal.SIGTERM) or not it.primary.running, every_s=0.05)
        assert it.primary.wait() == -signal.SIGTERM
        assert not it.primary.events(PARTS)
