"""What walcast says of how old a replica is, against the truth; and what the parts of that say."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import quick_node, staleness
from support.failover_gates import Gates
from support.frozen import disk
from support.nodes import LOOPBACK, Node, poll
from support.staleness import App, Oracle, Watched

from walcast import statusfile, wire
from walcast.errors import Unavailable
from walcast.primary import Primary
from walcast_node.commands.status_facts import primary_status

FAULT_S = 1.6  # a claim to be level holds for one second, with times as short as here
SOON_S = 20.0


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads status files here goes by the same times as the processes."""
    quick_node.shorten(monkeypatch.setattr)
    monkeypatch.setattr(staleness, "MAX_LAG_S", (0.1, 0.4, 2.0))


@dataclass
class Set:
    """A primary, and two followers that are watched: `near` is connected directly, `far` by a gate."""

    directory: Path
    primary: Node
    primary_http: str
    app: App
    gates: Gates
    near: Watched
    far: Watched
    stuck: Path
    full: Path

    def settle(self) -> None:
        """Everything is well again: both say so."""
        for watched in (self.near, self.far):
            assert poll(lambda w=watched: w.said_s < 0.3 and w.looks > 5, SOON_S), watched

    def fault(self, *watched: Watched) -> None:
        """For a while; those that are hit say it."""
        began_s = time.monotonic()
        for one in watched:
            assert poll(lambda w=one: w.said_s > FAULT_S / 2, SOON_S), f"nothing is said of it: {one}"
        poll(lambda: time.monotonic() > began_s + FAULT_S)


@contextmanager
def started(directory: Path, bug: str = "") -> Iterator[Set]:
    db = directory / "app.db"
    App.create(db)
    stuck, full = directory / "stuck", directory / "full"
    with ExitStack() as stack:
        env = {"STUCK_CAPTURE": str(stuck), "PLANTED_BUG": bug}
        more = ["--http", LOOPBACK, "--json", "--log-format", "json"]
        primary = Node(["primary", str(db), "--listen", LOOPBACK, *more], directory, "primary", env, "quick_node.py")
        stack.callback(primary.start().end)
        facts = primary.ready()
        primary.address = facts["listen"]
        primary.arguments[primary.arguments.index("--listen") + 1] = primary.address
        gates = Gates(lambda name: None)
        stack.callback(gates.close)
        gate = gates.open("primary")
        gates.lead("primary", facts["listen"])
        followers = []
        for name, address, env in (("near", facts["listen"], {"FULL_DISK": str(full)}), ("far", gate, {})):
            path = directory / name / "app.db"
            path.parent.mkdir()
            flags = ["follower", str(path), "--primary", address, *more]
            node = Node(flags, path.parent, name, {"PLANTED_BUG": bug, **env}, "quick_node.py")
            stack.callback(node.start().end)
            followers.append((node, path))
        app = stack.enter_context(App(db))
        oracle = Oracle(app)
        near, far = (oracle.add(path, node.ready()["http"]) for node, path in followers)
        stack.enter_context(oracle.watching())
        made = Set(directory, primary, facts["http"], app, gates, near, far, stuck, full)
        made.settle()
        yield made
        made.settle()
        oracle.check()


def test_nothing_stale_looks_fresh_whatever_is_in_the_way(tmp_path: Path) -> None:
    with started(tmp_path) as it:
        # Capture is stuck: heartbeats go on, and say of when they are.
        it.stuck.touch()
        it.fault(it.near, it.far)
        [status] = primary_status(wire.Address.parse(it.primary.address), wire.Tls())["databases"]
        assert status["look_age_ms"] > FAULT_S / 2 * 1000
        assert "has not looked at the WAL" in status["trouble"]
        assert min(follower["lag_ms"] for follower in status["followers"]) > FAULT_S / 2 * 1000
        with Primary(it.directory / "app.db") as asked:
            began_s = time.monotonic()
            with pytest.raises(Unavailable):
                asked.barrier(timeout=0.3)
            assert time.monotonic() < began_s + 3.0
        it.stuck.unlink()
        it.settle()
        # One is cut off, the other one cannot apply what it hears of.
        it.gates.cut("primary")
        it.full.touch()
        it.fault(it.near, it.far)
        it.gates.heal()
        it.full.unlink()
        it.settle()
        # Nobody says anything; commits go on.
        it.primary.signal(signal.SIGSTOP)
        it.fault(it.near, it.far)
        it.primary.signal(signal.SIGCONT)
    assert it.near.stalest_s > statusfile.QUIET_S
    assert it.far.stalest_s > statusfile.QUIET_S


@pytest.mark.slow
def test_a_follower_that_is_level_on_arrival_is_found(tmp_path: Path) -> None:
    def stuck_for_a_while() -> None:
        with started(tmp_path, "arrival") as it:
            it.stuck.touch()
            poll(lambda: it.near.stalest_s > FAULT_S)
            it.stuck.unlink()

    with pytest.raises(AssertionError, match="the truth is"):
        stuck_for_a_while()


@pytest.mark.slow
def test_a_log_whose_disk_stops_makes_nobody_look_fresh_and_an_end_that_is_said(tmp_path: Path) -> None:
    log = tmp_path / "app.db-walcast" / "log"
    with disk(log, tmp_path / "log.img") as stopping, started(tmp_path) as it:
        stopping.freeze()
        it.fault(it.near, it.far)
        began_s = time.monotonic()
        with Primary(it.directory / "app.db") as asked, pytest.raises(Unavailable):
            asked.barrier(timeout=0.3)
        assert time.monotonic() < began_s + 3.0
        stopping.go_on()
        it.settle()
        stopping.freeze()
        it.fault(it.near)
        it.primary.signal(signal.SIGTERM)
        said = it.primary.wait_event("stopping: not everything went out", seconds=SOON_S)
        assert "not captured" in said["missing"][0]
        stopping.go_on()  # no process ends before the kernel has what it waits for
        assert it.primary.wait() == 0
        it.primary.start().ready()
        it.gates.lead("primary", it.primary.address)
