"""The demo tells the truth, whether all goes well or something fails, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support import warm
from support.leftovers import processes_in

from walcast.position import Position
from walcast.statusfile import State, Status
from walcast.terms import first_txid
from walcast_node.rehearsal import demo_app
from walcast_node.rehearsal.demo import Demo
from walcast_node.rehearsal.demo_screen import (
    PHASES,
    VICTIM,
    Facts,
    Row,
    app_row,
    follower_row,
    gone_row,
    plain_line,
    primary_row,
    table,
    verdict,
)
from walcast_node.rehearsal.demo_stage import FOLLOWERS, NODES, DemoError

PATIENCE_SECONDS = 60
COMMAND = [sys.executable, "-m", "walcast_node.cli", "demo", "--seconds", "3", "--json"]

PLANTED = """
import shutil, signal, sys, time
from pathlib import Path
from walcast_node.rehearsal import demo
from walcast_node.rehearsal import demo_app
from walcast_node.rehearsal import demo_stage
{planted}
sys.exit(0 if demo.run_demo(seconds=1, keep=False, as_json=True) else 1)
"""

NO_FAILOVER = """
demo.Demo.kill_and_return = demo.Demo.fail_over = lambda self, seconds: None
"""

FLIPPED_BYTE = """
def checkpoint_and_flip(database, checkpoint=demo.checkpoint):
    checkpoint(database)
    if "edge-2" in str(database):
        data = bytearray(database.read_bytes())
        data[5000] ^= 1
        database.write_bytes(data)
demo.checkpoint = checkpoint_and_flip
"""

LOST_ARCHIVE_FILE = """
def checkpoint_and_lose(database, checkpoint=demo.checkpoint):
    checkpoint(database)
    if "edge-2" in str(database):
        max((database.parent.parent / "archive/ltx/0").iterdir()).unlink()
demo.checkpoint = checkpoint_and_lose
"""

DYING_FOLLOWER = """
def follow(self, name):
    self.start(name, "walcast_node.cli", "follower", self.database(name), "--primary", "nonsense")
demo.Demo.follow = follow
"""

FOLLOWERS_THAT_NEVER_TAKE_OVER = """
def follow(self, name, follow=demo.Demo.follow, flags=demo.Demo.flags):
    self.flags = lambda name: [*flags(self, name), "--never-promote"]
    follow(self, name)
    del self.flags
def fail_over(self, seconds, fail_over=demo.Demo.fail_over):
    demo_stage.PATIENCE_S = 4.0
    fail_over(self, seconds)
demo.Demo.follow, demo.Demo.fail_over = follow, fail_over
demo.Demo.kill_and_return = lambda self, seconds: None
"""

# As a host that replicates nothing any more while the app goes on: what is committed meanwhile is lost with it.
FROZEN_PRIMARY = """
def freeze(self, lose_host=demo.Demo.lose_host):
    self.children["origin"].process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    return lose_host(self)
demo.Demo.lose_host = freeze
demo.Demo.kill_and_return = lambda self, seconds: None
"""

NOTHING_KEPT = """
def drop(self, committed, count_lost=demo.Demo.count_lost):
    shutil.rmtree(self.database("origin").with_name("app.db-walcast") / "discarded")
    count_lost(self, committed)
demo.Demo.count_lost = drop
"""

KILLED_PRIMARY = """
def kill_primary(self, seconds):
    self.children["origin"].process.kill()
    self.pause(10)
demo.Demo.kill_and_return = kill_primary
"""

BROKEN_INVARIANT = """
def start(self, name, *arguments, start=demo.Demo.start):
    if name == "reader-edge-1":
        import sqlite3
        other = self.folder / "other.db"
        db = sqlite3.connect(other, isolation_level=None)
        demo_app.create(db)
        db.execute("update accounts set balance = balance + 1 where id = 7")
        db.close()
        arguments = (*arguments[:-1], other)
    start(self, name, *arguments)
demo.Demo.start = start
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Temporary folders go to `tmp_path`, where the test sees what is left of them."""
    return os.environ | {"TMPDIR": str(tmp_path)}


def answer(done: subprocess.CompletedProcess[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, facts, and what people were told."""
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def run_planted(planted: str, environment: dict[str, str]) -> tuple[int, dict[str, Any], str]:
    """A short demo with something in it that is wrong; its processes are forked."""
    command = [sys.executable, "-c", PLANTED.format(planted=planted)]
    return answer(warm.run(command, env=environment, timeout=PATIENCE_SECONDS))


def test_proves_what_it_promises_and_leaves_nothing_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    """Each process in an interpreter of its own, as users have it."""
    code, facts, told = answer(
        subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    )
    assert code == 0, told
    assert facts["passed"]
    assert facts["failure"] is None
    assert facts["equal"] == [*NODES, "restored"]
    assert facts["broken"] == []
    assert facts["disconnects"] == 0
    assert facts["killed"] == VICTIM
    assert facts["behind_txids"] > 0
    assert facts["commits"] > facts["behind_txids"]
    assert facts["checks"] > 50
    assert facts["longest_lag_ms"] > 0
    assert facts["new_primary"] in FOLLOWERS
    assert facts["term"] == 2
    assert 0.5 < facts["first_write_s"] < 15  # the lease of the lost primary was to run out first
    assert facts["lost_commits"] <= 50  # what was not replicated yet when the primary was killed
    assert bool(facts["lost_commits"]) == bool(facts["kept_in"])
    in_term_2 = Position.parse(facts["position"]).txid - first_txid(facts["commits"])
    assert 0 < in_term_2 < facts["commits"]
    assert "PASSED" in told
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        pytest.param(NO_FAILOVER + FLIPPED_BYTE, "edge-2: byte 5,000 differs", id="a changed byte"),
        pytest.param(
            NO_FAILOVER + LOST_ARCHIVE_FILE,
            "restored: ",
            id="an archive that lost its last file",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            KILLED_PRIMARY, "origin ended by itself with exit code -9", id="a primary that dies", marks=pytest.mark.slow
        ),
        pytest.param(
            FOLLOWERS_THAT_NEVER_TAKE_OVER,
            "a follower that takes over, and the app's first write there: not within 4 s",
            id="followers that never take over",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            FROZEN_PRIMARY + NOTHING_KEPT,
            "that only origin had are not kept there either",
            id="lost and not kept",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            DYING_FOLLOWER, "ended by itself with exit code 1", id="a follower that dies early", marks=pytest.mark.slow
        ),
        pytest.param(
            BROKEN_INVARIANT, "reader-edge-1: at 2000 orders the balances add up to 100001", id="broken invariant"
        ),
    ],
)
def test_names_what_failed(planted: str, named: str, tmp_path: Path, environment: dict[str, str]) -> None:
    code, facts, told = run_planted(planted, environment)
    assert code == 1, told
    assert not facts["passed"]
    assert named in facts["failure"]
    assert named in told
    assert "PASSED" not in told
    if planted is DYING_FOLLOWER:  # its last words are shown
        assert "  | error: " in told
        assert "nonsense" in told
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.slow
def test_commits_lost_with_a_host_are_counted_and_named_with_where_they_are_kept(environment: dict[str, str]) -> None:
    code, facts, told = run_planted(FROZEN_PRIMARY, environment)
    assert code == 0, told
    assert 5 <= facts["lost_commits"] <= 100
    assert len(facts["kept_in"]) == 1
    assert f"lost with that host: {facts['lost_commits']} commits, kept aside in {facts['kept_in'][0]}" in told


def test_commits_that_are_neither_on_the_new_primary_nor_kept_fail_the_demo(tmp_path: Path) -> None:
    demo = Demo(tmp_path, Console(file=io.StringIO()), Facts())
    demo.primary = "edge-1"
    demo.database("edge-1").parent.mkdir()
    with closing(sqlite3.connect(demo.database("edge-1"), isolation_level=None)) as db:
        demo_app.create(db)
        for number in (1, 2, 3):
            demo_app.order(db, number)
    demo.count_lost(3)
    assert demo.facts.lost_commits == 0
    with pytest.raises(DemoError, match="2 of 2 commits that only origin had are not kept there either"):
        demo.count_lost(5)


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    with warm.WarmPopen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if PHASES["write"] in line:
                break
        assert len(processes_in(tmp_path)) >= 4
        demo.send_signal(signal.SIGINT)
        assert demo.wait(PATIENCE_SECONDS) == 130
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def test_a_status_that_is_not_stopped_without_a_process_means_killed() -> None:
    now_ns = 10_000_000_000
    status = Status(State.STREAMING, position=Position(90, 1 << 63), primary_txid=90, level_ns=8_000_000_000, pid=7)
    killed = follower_row("edge-2", status, None, 10, now_ns, killed=True)
    assert killed == Row("edge-2", "follower", "killed", f"{90:016x}/8000000000000000", 10, 2000.0)
    assert follower_row("edge-2", status, 8, 10, now_ns).state == "starting"
    assert follower_row("edge-2", None, None, 0, now_ns) == Row("edge-2", "follower", "waiting")


def test_a_node_has_the_role_that_it_says_and_none_when_it_is_dead() -> None:
    serving = primary_row("origin", {"role": "primary", "position": "x"})
    assert serving == Row("origin", "primary", "serving", "x")
    assert primary_row("origin", {"role": "fenced", "position": "x"}) == Row("origin", "fenced", "writers held", "x")
    assert gone_row(serving, killed=True) == Row("origin", "", "killed", "x")
    assert gone_row(serving, killed=False) == Row("origin", "primary", "stopped", "x")
    waiting = Row("edge-1", state="waiting")
    assert gone_row(waiting, killed=False) == waiting


def test_the_app_is_where_it_writes() -> None:
    assert app_row({}, False).state == "waiting"
    assert app_row({"database": "/x/edge-1/app.db", "rows": 7}, True) == Row("app", "writer", "on edge-1", rows=7)
    assert app_row({"database": "", "rows": 7}, True).state == "locked out"
    assert app_row({"database": "", "rows": 7}, False).state == "stopped"


def test_all_fits_80_columns() -> None:
    position = f"{0x2ABCDE:016x}/{'f' * 16}"
    rows = [Row("origin", "follower", "bootstrapping", position, 123_456, 12_345.6, 123_456, 123_400_000)]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(table(rows, wide=False))
    text = captured.get()
    cells = "origin", "follower", "bootstrapping", "2abcde/ffffffff", "123,456", "12,346", "123.4", "WAL MB"
    for cell in cells:
        assert cell in text
    assert max(map(len, PHASES.values())) <= 78


def test_a_line_without_a_terminal_says_the_same() -> None:
    rows = [Row("app", "writer", "on edge-2", rows=2500), Row("edge-1", "follower", "streaming", "x", 3, 1.0, 2497)]
    rows.append(Row("edge-2", "primary", "serving"))
    line = "  2.0 s    app on edge-2, 2,500 rows; edge-1 streaming, 3 behind; edge-2 primary, serving"
    assert plain_line(2.04, rows) == line


def test_the_verdict_says_what_was_lost_with_a_host_and_where_it_is_kept() -> None:
    lost = verdict(Facts(passed=True, new_primary="edge-1", lost_commits=1, kept_in=["origin/x"]))
    assert "  lost with that host: 1 commit, kept aside in origin/x" in lost
    assert "  lost with that host: 0 commits" in verdict(Facts(passed=True, new_primary="edge-1"))


def test_no_failed_demo_reads_as_passed() -> None:
    failed = verdict(Facts(failure="edge-1: byte 7 differs", equal=["app"]), ["12:00 error"])
    assert failed == ["FAILED after 0.0 s: edge-1: byte 7 differs", "  | 12:00 error"]
