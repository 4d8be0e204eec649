"""Processes from the fork server: started in milliseconds, signalled by a handle that no other process can get."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.nodes import ENVIRONMENT, PATIENCE_S, TESTS


class Forked:
    """A process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    @property
    def running(self) -> bool:
        return not self._ended(0.0)

    def _ended(self, seconds: float) -> bool:
        return self._fd < 0 or bool(select.select([self._fd], [], [], seconds)[0])

    def signal(self, number: signal.Signals) -> None:
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                pass

    def wait(self, seconds: float = PATIENCE_S) -> None:
        """Until it has ended."""
        assert self._ended(seconds), f"process {self.pid} does not end"
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self, seconds: float = PATIENCE_S) -> None:
        """SIGTERM."""
        self.signal(signal.SIGTERM)
        self.wait(seconds)


class Forks:
    """The fork server."""

    def __init__(self, bug: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "support" / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | ({"PLANTED_BUG": bug} if bug else {}),
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, what: str, *arguments: str | Path, out: Path, err: Path) -> Forked:
        """Start `walcast`, or a script of `support`. What it says is appended to the files."""
        assert self._process.stdin is not None
        order = {"run": what, "arguments": [str(a) for a in arguments], "out": str(out), "err": str(err)}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return Forked(int(self._line()))

    def end(self) -> None:
        """The server and every process that it started."""
        self._process.kill()
        self._process.wait(PATIENCE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def forks(bug: str = "") -> Iterator[Forks]:
    """A fork server, ended with the block. `bug`: what is wrong with every walcast that it starts."""
    made = Forks(bug)
    try:
        yield made
    finally:
        made.end()
