"""Processes from a fork server: started in milliseconds, signalled by a handle that no other process can get."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

SERVER = Path(__file__).with_name("fork_server.py")
PATIENCE_S = 60.0
NAMESPACES = ("mnt", "net")
NOTHING = Path(os.devnull)
Fds: TypeAlias = tuple[int, int, int]  # standard input, output and error


class Forked:
    """A process, with the methods of `subprocess.Popen`."""

    cpu_s = 0.0  # of all that have ended

    def __init__(self, report: int) -> None:
        self.returncode: int | None = None
        self._report = report
        self._said = b""
        self._read(b"\n", None)
        first, _, self._said = self._said.partition(b"\n")
        self.pid = int(first)
        try:
            self._handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._handle = -1

    def _read(self, until: bytes, seconds: float | None) -> bool:
        while until not in self._said:
            if not select.select([self._report], [], [], seconds)[0]:
                return False
            part = os.read(self._report, 1024)
            assert part, "the fork server ended"
            self._said += part
        return True

    @property
    def running(self) -> bool:
        return self.poll() is None

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        return self._ended(0.0)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None and self._read(b"\n", seconds):
            code, cpu_s = self._said.split()
            self.returncode = int(code)
            Forked.cpu_s += float(cpu_s)
            self._close()
        return self.returncode

    def _close(self) -> None:
        for fd in (self._report, self._handle):
            if fd >= 0:
                os.close(fd)
        self._report = self._handle = -1

    def send_signal(self, number: signal.Signals) -> None:
        if self._handle >= 0:
            try:
                signal.pidfd_send_signal(self._handle, number)
            except ProcessLookupError:
                pass

    signal = send_signal

    def wait(self, timeout: float | None = PATIENCE_S) -> int:
        """Until it has ended: its exit code."""
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired([f"process {self.pid}"], timeout)
        return code

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def stop(self, seconds: float = PATIENCE_S) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)
        self.wait(seconds)


class Orders:
    """What a fork server takes through a socket."""

    def __init__(self, environment: Mapping[str, str], orders: socket.socket) -> None:
        self.environment = dict(environment)
        self._orders = orders

    def start(self, what: str, arguments: Sequence[str | Path], fds: Fds, environment: Mapping[str, str]) -> Forked:
        """Start `walcast`, or a script of `support`, in just this environment."""
        return Forked(self.order(what, arguments, fds, environment))

    def order(
        self,
        what: str,
        arguments: Sequence[str | Path],
        fds: Fds,
        environment: Mapping[str, str],
        *,
        directory: str | Path | None = None,
        new_session: bool = False,
        kept: Sequence[int] = (),
    ) -> int:
        """Start it, with these `kept` descriptors: where it is reported of."""
        order = {
            "run": what,
            "arguments": [str(a) for a in arguments],
            "environment": dict(environment),
            "directory": str(directory or Path.cwd()),
            "umask": _umask(),
            "session": new_session,
            "kept": list(kept),
        }
        report, theirs = os.pipe()
        try:
            socket.send_fds(self._orders, [json.dumps(order).encode()], [*fds, *kept, theirs])
        finally:
            os.close(theirs)
        return report

    def run(self, what: str, *arguments: str | Path, out: Path, err: Path) -> Forked:
        """Start `walcast`, or a script of `support`. What it says is appended to the files."""
        with NOTHING.open("rb") as none, out.open("ab") as said, err.open("ab") as complained:
            fds = none.fileno(), said.fileno(), complained.fileno()
            return self.start(what, arguments, fds, self.environment)


class Forks(Orders):
    """A fork server."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(environment, ours)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER), str(theirs.fileno())],
                env=self.environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def end(self) -> None:
        """The server and every process that it started."""
        self._orders.close()
        self._process.wait(PATIENCE_S)


def _umask() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask:"))
    return int(line.split()[1], 8)


@contextmanager
def forks(environment: Mapping[str, str]) -> Iterator[Forks]:
    """A fork server, ended with the block."""
    made = Forks(environment)
    try:
        yield made
    finally:
        made.end()


# One for all tests of this process

_shared: tuple[list[str], Forks] | None = None


def shared_forks(environment: Mapping[str, str]) -> Forks:
    """The one of this process; another one once this process is in namespaces of its own."""
    global _shared
    here = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in NAMESPACES]
    if _shared is None or _shared[0] != here:
        end_shared_forks()
        _shared = here, Forks(environment)
    return _shared[1]


def end_shared_forks() -> None:
    global _shared
    if _shared is not None:
        _shared[1].end()
        _shared = None
