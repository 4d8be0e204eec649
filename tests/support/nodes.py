"""Real primaries and followers for tests: started on ports that the system chooses, ended with the test.

Only processes started here are ever signalled, each by its own handle. They are forked from a process that has
everything imported, unless `fresh` asks for an interpreter of their own, as users have.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import grpc
from support.forks import NOTHING, Forked, shared_forks

from walcast import wire
from walcast.errors import Unavailable
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.statusfile import Status, read_status

TESTS = Path(__file__).parent.parent
PATIENCE_S = 60.0
SELDOM_S = 0.025
LOOPBACK = "127.0.0.1:0"
# What a shell may have set must not change what the tests start.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WALCAST_")}
ENVIRONMENT["PYTHONPATH"] = f"{TESTS.parent}:{TESTS}"


def poll(what: Callable[[], Any], seconds: float = PATIENCE_S, every_s: float = 0.005) -> Any:
    """Until `what()` is true: its answer. The last one, false, when the time is over.

    Looks are at least `every_s` apart, and more the longer it takes: what asks a command must not occupy the machine
    that others are to get on with.
    """
    began = time.monotonic()
    while True:
        looked = time.monotonic()
        if answer := what():
            return answer
        now = time.monotonic()
        if now > began + seconds:
            return answer
        time.sleep(max(every_s, 2 * (now - looked), min(SELDOM_S, 0.1 * (now - began))))


def walcast(
    *arguments: str | Path, env: dict[str, str] | None = None, timeout: float = PATIENCE_S, answer: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: returncode, stdout, stderr. `answer` is its standard input."""
    with TemporaryFile("w+") as asked, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        asked.write(answer)
        asked.seek(0)
        fds = asked.fileno(), out.fileno(), err.fileno()
        process = shared_forks(ENVIRONMENT).start("walcast", arguments, fds, ENVIRONMENT | (env or {}))
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(["walcast", *map(str, arguments)], code, out.read(), err.read())


def states(pid: int) -> set[bytes]:
    """Of all threads of a process (proc(5)), as in `ps`."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            found.add(task.read_bytes().rpartition(b") ")[2][:1])
    return found


@dataclass
class Node:
    """A walcast process. What it says goes to files, so that no pipe is ever full."""

    arguments: list[str]
    directory: Path
    name: str
    env: dict[str, str] = field(default_factory=dict)
    script: str | None = None
    address: str = ""
    fresh: bool = False
    starts: int = 0
    _process: subprocess.Popen[bytes] | Forked | None = None

    def start(self) -> Node:
        """Start it, or start it again; what it said before stays in the files."""
        assert self._process is None
        self.starts += 1
        environment = ENVIRONMENT | self.env
        with NOTHING.open("rb") as none, self.out.open("ab") as out, self.err.open("ab") as err:
            self._said = out.tell()
            if self.fresh:
                run = [str(TESTS / "support" / self.script)] if self.script else ["-m", "walcast_node.cli"]
                command = [sys.executable, *run, *self.arguments]
                self._process = subprocess.Popen(command, stdin=none, stdout=out, stderr=err, env=environment)
            else:
                fds = none.fileno(), out.fileno(), err.fileno()
                what = self.script or "walcast"
                self._process = shared_forks(ENVIRONMENT).start(what, self.arguments, fds, environment)
        return self

    @property
    def out(self) -> Path:
        return self.directory / f"{self.name}.out"

    @property
    def err(self) -> Path:
        return self.directory / f"{self.name}.err"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ready(self) -> dict[str, Any]:
        """The facts it prints when it is ready."""

        def said() -> bool:
            return b"\n" in self.out.read_bytes()[self._said :] or not self.running

        assert poll(said), f"{self.name} does not get ready:\n{self.err.read_text()}"
        lines = self.out.read_bytes()[self._said :].splitlines()
        assert lines, f"{self.name} ended:\n{self.err.read_text()}"
        facts: dict[str, Any] = json.loads(lines[0])
        return facts

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it logged, in all its lives."""
        said = [line for line in self.err.read_text().splitlines() if event is None or event in line]
        found = [json.loads(line) for line in said if line.startswith("{")]
        return [line for line in found if event is None or line["event"] == event]

    def wait_event(self, event: str, count: int = 1, seconds: float = PATIENCE_S) -> dict[str, Any]:
        """Until it has logged `event` `count` times in all."""
        found = poll(lambda: len(self.events(event)) >= count and self.events(event), seconds)
        assert found, f"{self.name} did not log {event!r}:\n{self.err.read_text()}"
        last: dict[str, Any] = found[-1]
        return last

    def signal(self, number: signal.Signals) -> None:
        """After SIGSTOP all its threads have stopped: until one of them has taken the signal, the others run on."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            assert poll(lambda: states(self.pid) <= {b"T", b"Z"}, 10.0, 0.001)

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Until it has ended: its exit code."""
        assert self._process is not None
        code = self._process.wait(seconds)
        self._process = None
        return code

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """At the end of a test, whatever state it is in. What it said is shown when the test fails."""
        print(f"--- {self.name} in {self.directory}:\n{self.err.read_text()[-4000:]}")
        if self._process is not None:
            if self.running:
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            self.wait()

    def rss_bytes(self) -> int:
        """Memory that it has resident."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise AssertionError("no VmRSS")


@contextmanager
def primary(
    db: Path, *flags: str | Path, listen: str = LOOPBACK, env: dict[str, str] | None = None, fresh: bool = False
) -> Iterator[Node]:
    """`walcast primary DB …`, ready; started again it takes the same port."""
    arguments = ["primary", str(db), *map(str, flags), "--listen", listen, "--json", "--log-format", "json"]
    node = Node(arguments, db.parent, f"primary-{db.stem}", env or {}, fresh=fresh)
    node.start()
    try:
        node.address = node.ready()["listen"]
        node.arguments[node.arguments.index("--listen") + 1] = node.address
        yield node
    finally:
        node.end()


@contextmanager
def follower(
    db: Path,
    address: str,
    *flags: str | Path,
    script: str | None = None,
    wait: bool = True,
    env: dict[str, str] | None = None,
    fresh: bool = False,
) -> Iterator[Node]:
    """`walcast follower DB --primary …`, connected unless `wait` is false."""
    db.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["follower", str(db), "--primary", address, *map(str, flags), "--json", "--log-format", "json"]
    node = Node(arguments, db.parent, f"follower-{db.stem}", env or {}, script=script, address=address, fresh=fresh)
    node.start()
    try:
        if wait:
            node.ready()
        yield node
    finally:
        node.end()


# Asking


def barrier(address: str, database: str = "", seconds: float = PATIENCE_S) -> Position:
    """A position that covers every commit made before this call, asked until the primary can say."""

    def ask() -> Position | None:
        with grpc.insecure_channel(address, options=wire.OPTIONS) as channel:
            try:
                reply = rpc.ReplicationStub(channel).Barrier(pb.BarrierRequest(database=database), timeout=10.0)
            except grpc.RpcError:
                return None
        return wire.position_of(reply.position) if reply.HasField("position") else None

    found = poll(ask, seconds, 0.05)
    assert found, f"{address} does not answer a barrier"
    position: Position = found
    return position


def position_of(replica: Path) -> Position:
    """What a replica's status file says it has applied."""
    try:
        status: Status = read_status(replica)
    except Unavailable:
        return Position()
    return status.position


def wait_level(address: str, *replicas: Path, seconds: float = PATIENCE_S) -> Position:
    """Until every replica has applied what the primary has now, exactly; nobody may be writing."""
    goal = barrier(address)
    for replica in replicas:
        there = poll(lambda replica=replica: position_of(replica) == goal, seconds)
        assert there, f"{replica} is at {position_of(replica)}, the primary at {goal}"
    return goal
