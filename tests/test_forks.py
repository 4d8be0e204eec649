"""The processes of the other tests, which come from a fork server, are as good as those that a user starts."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.forks import NOTHING, Forked, Forks, forks
from support.nodes import ENVIRONMENT, PATIENCE_S, Node, walcast

SAYING = """
import os, sys
from pathlib import Path
print(os.environ.get("ONLY_HERE"), os.environ.get("HOME"), Path.cwd(), oct(os.umask(0)), *sys.argv[1:])
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1], file=sys.stderr)
"""
WAITING = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
LATE = """
import sys, threading, time
threading.Thread(target=lambda: (time.sleep(0.05), print("a thread ended"))).start()
sys.exit(3)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Forks]:
    with forks(ENVIRONMENT) as made:
        yield made


def start(server: Forks, folder: Path, script: str, *arguments: str, environment: dict[str, str]) -> Forked:
    (folder / "script.py").write_text(script)
    with NOTHING.open("rb") as none, (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        fds = none.fileno(), out.fileno(), err.fileno()
        return server.start(str(folder / "script.py"), arguments, fds, environment)


def test_it_has_its_own_environment_directory_mask_and_no_descriptor_of_others(
    server: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    mask = os.umask(0o027)
    try:
        other = start(server, tmp_path / "other", WAITING, environment=ENVIRONMENT)
        assert start(server, tmp_path, SAYING, "a", "b c", environment={"ONLY_HERE": "yes"}).wait() == 0
    finally:
        os.umask(mask)
    other.kill()
    assert (tmp_path / "out").read_text() == f"yes None {tmp_path} 0o27 a b c\n"
    assert (tmp_path / "err").read_text() == "[0, 1, 2]\n"


def test_its_end_is_told_as_by_subprocess(server: Forks, tmp_path: Path) -> None:
    process = start(server, tmp_path, WAITING, environment=ENVIRONMENT)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == process.poll() == -signal.SIGKILL
    process.send_signal(signal.SIGTERM)  # to nobody
    assert start(server, tmp_path, LATE, environment=ENVIRONMENT).wait() == 3
    assert (tmp_path / "out").read_text() == "a thread ended\n"
    assert start(server, tmp_path, "1 / 0", environment=ENVIRONMENT).wait() == 1
    assert "ZeroDivisionError" in (tmp_path / "err").read_text()


def test_it_ends_with_the_server(tmp_path: Path) -> None:
    with forks(ENVIRONMENT) as made:
        process = start(made, tmp_path, WAITING, environment=ENVIRONMENT)
        handle = os.pidfd_open(process.pid)
    try:
        assert select.select([handle], [], [], PATIENCE_S)[0]
    finally:
        os.close(handle)


def test_a_command_says_the_same_as_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    arguments = ["status", str(tmp_path / "none.db")]
    command = [sys.executable, "-m", "walcast_node.cli", *arguments]
    own = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    done = walcast(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (own.returncode, own.stdout, own.stderr)
    assert done.returncode != 0
    assert Node(arguments, tmp_path, "fresh", fresh=True).start().wait() == done.returncode
