"""Runs a target on mutated inputs, and keeps those that reach new lines as a base for further ones.

A finding is an error that is neither walcast's nor allowed, an input that takes longer than DEADLINE_S, memory out of
proportion to an input (measured for some of them), or a process that keeps growing. Reached lines are seen with
`sys.settrace` for one input in TRACE_EVERY, so that the others run at full speed: no build of its own, as a fuzzer in C
needs, and it runs on every Python that walcast does.
"""

from __future__ import annotations

import base64
import random
import resource
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from fuzz.mutations import Mutations
from walcast.errors import WalcastError

DEADLINE_S = 10.0  # the machine may be busy; what hangs, hangs for longer
TRACE_EVERY = 100
MEASURE_EVERY = 1000
MEMORY_BYTES = 2 << 20  # beside what goes with the input: tables that are made once, a page of 64 KiB and its copies
MEMORY_FACTOR = 64  # of the input
GROWTH_BYTES = 16 << 20  # in each quarter of a run: what grows once, by one large input, is no leak
CORPUS_MOST = 2000
SHORT = 1000

ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / name) + "/" for name in ("walcast", "primary", "follower", "node"))


class Finding(AssertionError):
    """What is wrong, and the input that shows it."""

    def __init__(self, what: str, data: bytes, seed: int) -> None:
        text = base64.b64encode(data).decode()
        super().__init__(f"{what}\nseed {seed}; input, {len(data)} bytes, as base64: {text[:4000]}")
        self.data = data


class Hang(BaseException):
    """Raised in the middle of a target."""


@dataclass(slots=True)
class Target:
    """A module of this package, as the engine sees it."""

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    allowed: tuple[type[BaseException], ...]
    tokens: Sequence[bytes]
    running: Callable[[], AbstractContextManager[Any]]
    short: int
    memory_bytes: int

    @classmethod
    def of(cls, module: ModuleType) -> Target:
        told = vars(module)
        return cls(
            module.__name__.rpartition(".")[2],
            told["target"],
            tuple(told["seeds"]()),
            (WalcastError, *told.get("ALLOWED", ())),
            tuple(told.get("TOKENS", ())),
            told.get("running", nullcontext),
            told.get("SHORT", SHORT),
            told.get("MEMORY_BYTES", MEMORY_BYTES),
        )


@dataclass(slots=True)
class Report:
    """Of one run."""

    target: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    corpus: int = 0
    lines: int = 0
    refused: int = 0
    peak_bytes: int = 0
    grown_bytes: int = 0

    def __str__(self) -> str:
        rate = self.inputs / max(self.seconds, 1e-9)
        return (
            f"{self.target}: {self.inputs:,} inputs in {self.seconds:.1f} s of processor time, {rate:,.0f} a second; "
            f"{self.lines} lines reached, {self.corpus} inputs kept, {self.refused:,} refused; peak "
            f"{self.peak_bytes >> 10} KiB, grown by {self.grown_bytes >> 10} KiB in each quarter; seed {self.seed}"
        )


@dataclass(slots=True)
class _Watch:
    """Looks every second whether an input has taken too long, in processor time."""

    began_s: float = field(default_factory=time.process_time)

    @contextmanager
    def watching(self) -> Iterator[None]:
        def look(number: int, frame: FrameType | None) -> None:
            if time.process_time() - self.began_s > DEADLINE_S:
                raise Hang

        before = signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


class _Lines:
    """The lines of walcast that were reached."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()
        self.new = False

    def tracing(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        key = (frame.f_code, frame.f_lineno)
        if key not in self.seen:
            self.seen.add(key)
            self.new = True
        return self._line


class Run:
    """One target, one seed."""

    def __init__(self, target: Target, seed: int) -> None:
        self.report = Report(target.name, seed)
        self._target = target
        self._chance = random.Random(f"{seed} {target.name}")
        self._mutations = Mutations(self._chance, target.tokens)
        self._corpus = list(target.seeds)
        self._lines = _Lines()
        self._watch = _Watch()

    def go(self, inputs: int) -> Report:
        """Raises Finding for the first one."""
        report, began_s = self.report, time.process_time()
        quarter = max(1, inputs // 4)
        resident: list[int] = []
        with self._target.running(), self._watch.watching():
            for data in self._target.seeds:
                self._traced(data)
            while report.inputs < inputs:
                report.inputs += 1
                data = self._mutations.next(self._corpus)
                if report.inputs % MEASURE_EVERY == 0:
                    self._measured(data)
                elif report.inputs % TRACE_EVERY == 0:
                    self._traced(data)
                else:
                    self._one(data)
                if report.inputs % quarter == 0:
                    resident.append(resident_bytes())
        report.seconds = time.process_time() - began_s
        report.corpus, report.lines = len(self._corpus), len(self._lines.seen)
        report.grown_bytes = max(0, min((after - before for before, after in pairwise(resident)), default=0))
        if report.grown_bytes > GROWTH_BYTES:
            raise Finding(f"{self._target.name}: grew by {report.grown_bytes:,} bytes", b"", report.seed)
        return report

    def _one(self, data: bytes) -> None:
        self._watch.began_s = time.process_time()
        try:
            self._target.run(data)
        except self._target.allowed:
            self.report.refused += 1
        except Hang as error:
            raise Finding(f"{self._target.name}: takes longer than {DEADLINE_S} s", data, self.report.seed) from error
        except Exception as error:
            what = f"{self._target.name}: {type(error).__name__}: {error}"
            raise Finding(what, data, self.report.seed) from error

    def _traced(self, data: bytes) -> None:
        self._lines.new = False
        before = sys.gettrace()
        sys.settrace(self._lines.tracing)
        try:
            self._one(data)
        finally:
            sys.settrace(before)
        if self._lines.new:
            if len(self._corpus) >= CORPUS_MOST:
                self._corpus.pop(self._chance.randrange(len(self._target.seeds), len(self._corpus)))
            self._corpus.append(data)

    def _measured(self, data: bytes) -> None:
        tracemalloc.start()
        try:
            self._one(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.report.peak_bytes = max(self.report.peak_bytes, peak)
        if peak > self._target.memory_bytes + MEMORY_FACTOR * len(data):
            raise Finding(f"{self._target.name}: takes {peak:,} bytes of memory", data, self.report.seed)


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
