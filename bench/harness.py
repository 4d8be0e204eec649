"""Real processes for a benchmark: started, watched, and ended with the run whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
MIB = 1 << 20
GIB = 1 << 30


class BenchError(Exception):
    """A benchmark could not be carried out."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, bytes: resident, of which anonymous, and the most that was ever resident."""

    rss: int
    anonymous: int
    peak: int


class Child:
    """A process of the run. Its standard error goes to a file that is shown when something is wrong."""

    def __init__(self, name: str, command: list[str], folder: Path, *, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = Path(tempfile.mkstemp(prefix=f"{name}-", suffix=".log", dir=folder)[1])
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self.pid = self._process.pid
        self._said = b""

    def line(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        give_up_s = time.monotonic() + timeout_s
        while b"\n" not in self._said:
            ready, _, _ = select.select([self._process.stdout], (), (), max(0.0, give_up_s - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            if not data:
                why = "ended" if ready else f"said nothing for {timeout_s:.0f} s"
                raise BenchError(f"{self.name} {why}: {self.log.read_text(errors='replace')[-2000:]}")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def json(self, timeout_s: float = START_TIMEOUT_S) -> Any:
        """The next line, as JSON."""
        return json.loads(self.line(timeout_s))

    def go(self) -> None:
        """Tell a worker to begin."""
        self.say("go")

    def say(self, line: str) -> None:
        """Into its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def cpu_s(self) -> float:
        """Processor time used so far, user and system: its CPU clock, to the nanosecond (/proc counts in 10 ms)."""
        return time.clock_gettime((~self.pid << 3) | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)

    def threads(self) -> dict[str, tuple[float, int]]:
        """Of each thread: processor time in s, and how often it went to sleep."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                name = f"{(task / 'comm').read_text().strip()} {task.name}"
                asleep = (task / "status").read_text().rpartition("\nvoluntary_ctxt_switches:")[2].split()[0]
                found[name] = (int((task / "schedstat").read_text().split()[0]) / 1e9, int(asleep))
        return found

    def memory(self) -> Memory:
        """As it is now."""
        facts = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )
        rss, anonymous, peak = (int(facts[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon", "VmHWM"))
        return Memory(rss, anonymous, peak)

    def forget_peak(self) -> None:
        """Begin `Memory.peak` anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @property
    def running(self) -> bool:
        """Whether it still is there."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it: politely, then not."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass
class Run:
    """One benchmark's folder and processes. `quick`: short rounds; `profile`: py-spy on what walcast runs."""

    quick: bool = False
    profile: bool = False
    profiles: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="walcast-bench-", dir=os.environ.get("BENCH_DIR")))
        self._stack = contextlib.ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def keep(self, context: contextlib.AbstractContextManager[Any]) -> Any:
        """Enter something that ends with the run."""
        return self._stack.enter_context(context)

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """A folder and everything started in here, gone at the end."""
        outer, self._stack = self._stack, contextlib.ExitStack()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            self._stack.close()
            self._stack = outer
            shutil.rmtree(folder, ignore_errors=True)

    def start(self, name: str, command: list[str], *, env: dict[str, str] | None = None) -> Child:
        """A process that ends with the run, or with the stage."""
        child = Child(name, command, self.folder, env=env)
        self._stack.callback(child.stop)
        return child

    def worker(self, name: str, *args: object) -> Child:
        """A process of `bench.workers`, ready to `go`."""
        child = self.start(name, [sys.executable, "-m", "bench.workers", name, *map(str, args)])
        if child.line() != "ready":
            raise BenchError(f"{name}: not ready")
        return child

    def primary(self, db: Path, *args: object, env: dict[str, str] | None = None) -> tuple[Child, str]:
        """A running primary and its address."""
        command = [sys.executable, "-m", "walcast_node.cli", "primary", str(db), *map(str, args)]
        child = self.start("primary", [*command, "--listen", "127.0.0.1:0", "--json"], env=env)
        return child, child.json()["listen"]

    def configured_primary(self, config: Path, *, env: dict[str, str] | None = None) -> tuple[Child, str]:
        """A running primary by its configuration file, and its address."""
        command = [sys.executable, "-m", "walcast_node.cli", "primary", "--config", str(config)]
        child = self.start("primary", [*command, "--listen", "127.0.0.1:0", "--json"], env=env)
        return child, child.json()["listen"]

    def follower(self, db: Path, primary: str, *args: object, env: dict[str, str] | None = None) -> Child:
        """A follower that is connected."""
        command = [sys.executable, "-m", "walcast_node.cli", "follower", str(db), "--primary", primary, *map(str, args)]
        child = self.start("follower", [*command, "--json"], env=env)
        child.json()
        return child

    @contextlib.contextmanager
    def profiled(self, *children: Child) -> Iterator[None]:
        """If a profile was asked for: the threads of these, and py-spy, if it is there. It costs them a few percent."""
        if not self.profile:
            yield
            return
        program = shutil.which("py-spy")
        watching: list[tuple[Child, Child, Path]] = []
        for child in children if program else ():
            raw = self.folder / f"{child.name}-{child.pid}.raw"
            command = [str(program), "record", "--nonblocking", "--rate", "200", "--threads", "--format", "raw"]
            command += ["--output", str(raw), "--pid", str(child.pid)]
            watching.append((child, Child("py-spy", command, self.folder), raw))
        time.sleep(1.0)
        begin_s, before = time.monotonic(), [child.threads() for child in children]
        try:
            yield
        finally:
            seconds = time.monotonic() - begin_s
            for child, then in zip(children, before, strict=True):
                self.profiles[child.name] = busy_threads(then, child.threads(), seconds)
            for child, spy, raw in watching:
                spy.signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    spy._process.wait(STOP_TIMEOUT_S)
                spy.stop()
                if raw.exists():
                    self.profiles[child.name] += "\n" + hot_functions(raw.read_text())


def busy_threads(before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]], seconds: float) -> str:
    """What each thread used of a core, and how often a second it went to sleep."""
    rows = []
    for name, (cpu_s, asleep) in after.items():
        cpu0_s, asleep0 = before.get(name, (0.0, 0))
        rows.append(((cpu_s - cpu0_s) / seconds, (asleep - asleep0) / seconds, name))
    lines = ["    threads: share of a core, sleeps a second"]
    lines += [f"    {cores:7.2%} {sleeps:8.1f}  {name}" for cores, sleeps, name in sorted(rows, reverse=True)[:8]]
    return "\n".join(lines)


OURS = ("(primary/", "(follower/", "(walcast/", "(grpc/")


def hot_functions(raw: str, count: int = 14) -> str:
    """Of py-spy's stacks: the functions with the largest shares, on top of the stack and (ours only) anywhere in it."""
    on_top: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    total = 0
    for line in raw.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = [frame.rsplit(":", 1)[0] + ")" for frame in stack.split(";")]
        total += int(number)
        on_top[frames[-1]] += int(number)
        for frame in set(frames):
            if any(ours in frame for ours in OURS):
                anywhere[frame] += int(number)
    lines = [f"    {total} samples of running threads; on top of the stack (native code counts for its caller):"]
    lines += [f"    {n / total:6.1%}  {name}" for name, n in on_top.most_common(count)]
    lines += ["    and anywhere in the stack:"]
    lines += [f"    {n / total:6.1%}  {name}" for name, n in anywhere.most_common(2 * count)]
    return "\n".join(lines)


@contextlib.contextmanager
def largest(*paths: Path, every_s: float = 0.005) -> Iterator[dict[Path, int]]:
    """The largest size each file was seen at, sampled."""
    sizes = dict.fromkeys(paths, 0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            for path in paths:
                with contextlib.suppress(OSError):
                    sizes[path] = max(sizes[path], path.stat().st_size)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


def make_database(path: Path) -> None:
    """An empty table `t (id, v)` in WAL mode."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    db.close()


def wait_for_row(replica: Path, rowid: int, timeout_s: float = 60.0, every_s: float = 0.001) -> int:
    """CLOCK_MONOTONIC in ns when a stock reader of the replica saw row `rowid`."""
    db = sqlite3.connect(replica, isolation_level=None)
    give_up_s = time.monotonic() + timeout_s
    try:
        while True:
            newest = db.execute("SELECT max(id) FROM t").fetchone()[0] or 0
            now_ns = time.monotonic_ns()
            if newest >= rowid:
                return now_ns
            if now_ns > give_up_s * 1e9:
                raise BenchError(f"the replica is at row {newest} after {timeout_s:.0f} s, not at {rowid}")
            time.sleep(every_s)
    finally:
        db.close()


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 60.0, every_s: float = 0.05) -> None:
    """Wait, but not for ever."""
    give_up_s = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > give_up_s:
            raise BenchError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(every_s)


def say(text: str) -> None:
    """One line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)
