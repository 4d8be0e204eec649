"""`--exec`: the app starts when its database can be used, gets the node's signals, and takes the node with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.folders import rows, serving, write
from support.nodes import ENVIRONMENT, LOOPBACK, Node, follower, poll, primary, wait_level, walcast

from walcast.errors import ConfigError
from walcast.restore import restore
from walcast.store import open_store
from walcast_node.cli import main
from walcast_node.process import app_process
from walcast_node.process.app_process import LAUNCHER, AppProcess, split_command

# Writes its signals down; SIGTERM ends it with code 3.
TRAPPED = """\
for name in HUP USR1 USR2; do trap "echo $name >> said" $name; done
trap 'echo TERM >> said; exit 3' TERM
echo started >> said
while :; do sleep 0.02; done
"""
# Commits when it is told to end.
LAST_WORDS = """\
import signal, sqlite3, sys, time
def end(*_):
    db = sqlite3.connect("app.db", isolation_level=None)
    db.execute("INSERT INTO t VALUES (99)")
    sys.exit()
signal.signal(signal.SIGTERM, end)
open("said", "w").write("started")
while True: time.sleep(60)
"""
DEAF = 'trap "" TERM; echo started > said; while :; do sleep 0.05; done'


def script(folder: Path, text: str, name: str = "app.sh") -> str:
    file = folder / name
    file.write_text(f"cd {folder}\n{text}" if name.endswith(".sh") else f"import os; os.chdir({str(folder)!r})\n{text}")
    return f"{'sh' if name.endswith('.sh') else sys.executable} {file}"


def said(folder: Path) -> list[str]:
    file = folder / "said"
    return file.read_text().split() if file.exists() else []


def archived(url: Path, copy: Path) -> list[int]:
    with open_store(str(url)) as store:
        restore(store, copy)
    return rows(copy)


@contextmanager
def running(folder: Path, app: str, *flags: str) -> Iterator[Node]:
    write(folder / "app.db", 1)
    with primary(folder / "app.db", folder / "archive", "--exec", app, *flags) as node:
        assert poll(lambda: said(folder))
        yield node


def test_the_app_of_a_litestream_file_is_started_and_its_exit_code_is_the_nodes(tmp_path: Path) -> None:
    write(tmp_path / "app.db", 1)
    file = tmp_path / "litestream.yml"
    app = script(tmp_path, "echo started > said; exit 7")
    file.write_text(f"exec: {app}\ndbs: [{{path: {tmp_path}/app.db, replica: {{path: {tmp_path}/archive}}}}]\n")
    with serving(file) as node:
        assert node.wait() == 7
    assert said(tmp_path) == ["started"]
    assert archived(tmp_path / "archive", tmp_path / "back.db") == [1]


def test_the_app_gets_the_nodes_signals_and_ends_it(tmp_path: Path) -> None:
    with running(tmp_path, script(tmp_path, TRAPPED)) as node:
        for name in ("HUP", "USR1", "USR2"):
            node.signal(signal.Signals[f"SIG{name}"])
            assert poll(lambda name=name: name in said(tmp_path))
        assert node.wait_event("SIGHUP: read again")
        assert node.running
        assert node.stop() == 3
    assert said(tmp_path) == ["started", "HUP", "USR1", "USR2", "TERM"]


def test_what_the_app_commits_as_it_ends_is_archived(tmp_path: Path) -> None:
    with running(tmp_path, script(tmp_path, LAST_WORDS, "app.py")) as node:
        assert node.stop() == 0
        assert node.wait_event("stopping: everything went out")
    assert archived(tmp_path / "archive", tmp_path / "back.db") == [1, 99]


def test_an_app_that_does_not_end_is_killed_while_there_is_time_to_archive(tmp_path: Path) -> None:
    with running(tmp_path, script(tmp_path, DEAF), "--stop-timeout", "1") as node:
        write(tmp_path / "app.db", 2)
        assert node.stop() == 128 + signal.SIGKILL
        assert node.wait_event("stopping: everything went out")
    assert archived(tmp_path / "archive", tmp_path / "back.db") == [1, 2]


def test_an_app_of_a_follower_starts_once_the_replica_can_be_read_also_without_the_primary(tmp_path: Path) -> None:
    write(tmp_path / "app.db", 1)
    replica, edge = tmp_path / "edge" / "app.db", tmp_path / "edge"
    edge.mkdir()
    app = script(edge, "cat app.db > seen; echo started >> said; trap 'exit 0' TERM; while :; do sleep 0.02; done")
    with primary(tmp_path / "app.db") as home:
        with follower(replica, home.address, "--exec", app) as node:
            wait_level(home.address, replica)
            assert poll(lambda: said(edge) == ["started"])
            assert (edge / "seen").stat().st_size
            assert node.stop() == 0
        home.stop()
        with follower(replica, home.address, "--exec", app, wait=False) as node:
            assert poll(lambda: said(edge) == ["started"] * 2)
            assert node.stop() == 0


def test_the_app_of_a_file_with_one_database_starts_once_that_is_restored(tmp_path: Path) -> None:
    write(tmp_path / "app.db", 1)
    with primary(tmp_path / "app.db", tmp_path / "archive") as node:
        assert node.stop() == 0
    for file in tmp_path.glob("app.db*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    file, app = tmp_path / "walcast.yml", script(tmp_path, "test -s app.db && echo restored > said; exit 0")
    database = f"path: {tmp_path}/app.db, restore-if-db-not-exists: true, replica: {{path: {tmp_path}/archive}}"
    file.write_text(f"exec: {app}\ndbs: [{{{database}}}]\n")
    with serving(file) as node:
        assert node.wait() == 0
    assert said(tmp_path) == ["restored"]


def test_an_app_that_a_sigint_did_not_reach_is_asked_once_more_before_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_process, "_is_from_terminal", lambda: True)

    async def code() -> int | None:
        app = AppProcess(split_command(script(tmp_path, TRAPPED)), kill_after_s=2.0)
        app.start()
        while not said(tmp_path):
            await asyncio.sleep(0.005)
        assert app.forward(signal.SIGINT)
        await app.ended.wait()
        return app.code

    monkeypatch.setattr(app_process, "TERM_SHARE", 0.01)
    assert asyncio.run(code()) == 3


# Archives, after it has ended by itself, while the first signal comes.
ENDS = """\
import asyncio, os, signal
from walcast_node.process.event_loop import run_until_signal
async def role(stop):
    stop.set()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)
    print("archived")
run_until_signal(role, lambda: None)
"""


def test_the_first_signal_does_not_cut_short_an_end_that_an_app_began() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (0, "archived\n")


def test_an_app_is_told_to_end_when_its_node_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, script(tmp_path, TRAPPED)) as node:
        node.kill()
        assert poll(lambda: said(tmp_path) == ["started", "TERM"])


def test_an_app_whose_node_died_before_it_was_started_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "said"
    nobody = os.getpid() + 1  # as where the parent of before is gone
    done = subprocess.run([sys.executable, "-I", "-S", str(LAUNCHER), str(nobody), "touch", str(file)], check=False)
    assert done.returncode == -signal.SIGTERM
    assert not file.exists()


def test_an_app_has_the_signals_of_a_program_that_a_shell_starts(tmp_path: Path) -> None:
    with running(tmp_path, script(tmp_path, "grep SigIgn /proc/self/status > said; sleep 60")) as node:
        assert poll(lambda: len(said(tmp_path)) == 2)
        assert int(said(tmp_path)[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0
        node.kill()


def test_a_command_that_cannot_be_run_is_an_error_before_anything_is_served(tmp_path: Path) -> None:
    write(tmp_path / "app.db", 1)
    done = walcast("primary", tmp_path / "app.db", "--listen", LOOPBACK, "--exec", "no-such-program --x")
    assert done.returncode == 1
    assert not (tmp_path / "app.db-walcast").exists()
    for text in ("", "sh -c 'x", "no-such-program"):
        with pytest.raises(ConfigError):
            split_command(text)
    assert split_command("sh -c 'a  b'") == ["sh", "-c", "a  b"]


def test_no_signal_is_taken_by_an_app_that_does_not_run() -> None:
    async def taken() -> bool:
        return AppProcess(["true"], 1.0).forward(signal.SIGTERM)

    assert asyncio.run(taken()) is False


ORPHANED = """\
import ctypes, subprocess, sys, time
from walcast_node.process.orphans import _zombies, reap
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: as process 1 of a container
mine = subprocess.Popen(["true"])
subprocess.run(["sh", "-c", "sleep 0.01 & exit 0"])
until = time.monotonic() + 10
while len(_zombies()) < 2 and time.monotonic() < until: time.sleep(0.01)
seen = reap((), [mine.pid])
assert len(seen) == 1 and len(_zombies()) == 2, (seen, _zombies())
assert reap(seen, [mine.pid]) == frozenset()
assert _zombies() == [mine.pid]
assert mine.wait() == 0
"""


def test_what_an_app_leaves_behind_in_a_container_is_no_zombie_for_long() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANED], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("theirs", ["replicate", "snapshots", "databases"])
def test_a_command_of_litestreams_says_which_one_is_meant(theirs: str) -> None:
    done = CliRunner().invoke(main, [theirs, "-config", "litestream.yml"])
    assert done.exit_code == 2
    assert "walcast " in done.stderr
