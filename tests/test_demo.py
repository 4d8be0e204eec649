"""The demo tells the truth, whether all goes well or something fails, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from node.demo import FOLLOWERS
from node.demo_screen import PHASES, VICTIM, Facts, Row, follower_row, plain_line, table, verdict
from walcast.position import Position
from walcast.statusfile import State, Status

PATIENCE_SECONDS = 60
COMMAND = [sys.executable, "-m", "node.cli", "demo", "--seconds", "3", "--json"]

PLANTED = """
import sys
from pathlib import Path
from node import demo, demo_app
{planted}
sys.exit(0 if demo.run_demo(seconds=1, keep=False, as_json=True) else 1)
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
    self.start(name, "node.cli", "follower", self.database(name), "--primary", "nonsense")
demo.Demo.follow = follow
"""

KILLED_PRIMARY = """
def kill_primary(self, seconds):
    self.children["primary"].process.kill()
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


def processes_in(folder: Path) -> list[str]:
    """The command lines that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(folder) in line:
            found.append(line)
    return found


def run(command: list[str], environment: dict[str, str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, facts, and what people were told."""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_proves_what_it_promises_and_leaves_nothing_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    code, facts, told = run(COMMAND, environment)
    assert code == 0, told
    assert facts["passed"]
    assert facts["failure"] is None
    assert facts["equal"] == ["app", *FOLLOWERS, "restored"]
    assert facts["broken"] == []
    assert facts["disconnects"] == 0
    assert facts["killed"] == VICTIM
    assert facts["behind_txids"] > 0
    assert facts["commits"] > facts["behind_txids"]
    assert facts["checks"] > 50
    assert facts["longest_lag_ms"] > 0
    assert 0 < Position.parse(facts["position"]).txid <= facts["commits"] + 1
    assert "PASSED" in told
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        pytest.param(FLIPPED_BYTE, "edge-2: byte 5,000 differs", id="a changed byte"),
        pytest.param(LOST_ARCHIVE_FILE, "restored: ", id="an archive that lost its last file"),
        pytest.param(KILLED_PRIMARY, "primary ended by itself with exit code -9", id="a primary that dies"),
        pytest.param(DYING_FOLLOWER, "ended by itself with exit code 1", id="a follower that dies early"),
        pytest.param(
            BROKEN_INVARIANT, "reader-edge-1: at 2000 orders the balances add up to 100001", id="broken invariant"
        ),
    ],
)
def test_names_what_failed(planted: str, named: str, tmp_path: Path, environment: dict[str, str]) -> None:
    code, facts, told = run([sys.executable, "-c", PLANTED.format(planted=planted)], environment)
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


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
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
    killed = follower_row("edge-2", status, None, 100, now_ns, killed=True)
    assert killed == Row("edge-2", "killed", f"{90:016x}/8000000000000000", 10, 2000.0)
    assert follower_row("edge-2", status, 8, 100, now_ns).state == "starting"
    assert follower_row("edge-2", None, None, 100, now_ns) == Row("edge-2", "waiting")


def test_the_table_fits_80_columns() -> None:
    rows = [Row("edge-1", "bootstrapping", f"{0xABCD:016x}/{'f' * 16}", 123_456, 12_345.6, 123_456, 123_400_000)]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(table(rows, wide=False))
    text = captured.get()
    for cell in ("edge-1", "bootstrapping", "abcd/ffffffffffffffff", "123,456", "12,346", "123.4"):
        assert cell in text


def test_a_line_without_a_terminal_says_the_same() -> None:
    rows = [Row("app", "writing", rows=2500), Row("edge-1", "streaming", "x", 3, 1.0, 2497)]
    assert plain_line(2.04, rows) == "  2.0 s    app writing, 2,500 rows; edge-1 streaming, 3 behind"


def test_no_failed_demo_reads_as_passed() -> None:
    failed = verdict(Facts(failure="edge-1: byte 7 differs", equal=["app"]), ["12:00 error"])
    assert failed == ["FAILED after 0.0 s: edge-1: byte 7 differs", "  | 12:00 error"]
