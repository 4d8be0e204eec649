"""Starts and ends the processes of the applier's tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from support.apply_source import TOTAL
from support.warm import WarmPopen

HERE = Path(__file__).parent
PATIENCE_SECONDS = 60.0
IMPORT_MUCH = ["apply_victim"]


def poll(what: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Until it is so; False when time is up. Looked at often at first, and more seldom the longer it takes."""
    began = time.monotonic()
    while not what():
        waited = time.monotonic() - began
        if waited > seconds:
            return False
        time.sleep(min(0.0005 + 0.05 * waited, 0.01))
    return True


@contextmanager
def script(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One of the scripts here, with pipes; ended when the block ends."""
    popen: Any = WarmPopen if name in IMPORT_MUCH else subprocess.Popen
    process = popen(
        [sys.executable, str(HERE / f"{name}.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        process.kill()
        process.wait(PATIENCE_SECONDS)


class Sql:
    """A stock connection in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def on(cls, path: Path) -> Iterator[Self]:
        with script("apply_sql", str(path)) as process:
            yield cls(process)

    def __call__(self, sql: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(sql), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@dataclass
class Readers:
    """Checking readers; `violations` is what they found, once the block that runs them has ended."""

    processes: list[subprocess.Popen[str]]
    progress: list[Path]
    checks: list[int] = field(default_factory=list)
    snapshots: int = 0
    violations: list[str] = field(default_factory=list)

    def count(self) -> list[int]:
        return [int.from_bytes(p.read_bytes(), "little") if p.exists() else 0 for p in self.progress]

    def wait(self, more: int = 1, seconds: float = PATIENCE_SECONDS) -> bool:
        """Until every one of them has made `more` further checks."""
        before = self.count()
        return poll(lambda: all(b - a >= more for a, b in zip(before, self.count(), strict=True)), seconds)

    def stop(self) -> None:
        for process in self.processes:
            out, _ = process.communicate("stop\n", PATIENCE_SECONDS)
            found = json.loads(out)
            self.checks.append(found["checks"])
            self.snapshots += found["snapshots"]
            self.violations += found["violations"]


@contextmanager
def readers(path: Path, directory: Path, modes: tuple[str, ...] = ("short", "short", "long")) -> Iterator[Readers]:
    """Readers that check until the end of the block."""
    with ExitStack() as stack:
        progress = [directory / f"progress-{i}" for i in range(len(modes))]
        processes = [
            stack.enter_context(script("apply_reader", str(path), mode, str(TOTAL), str(file)))
            for mode, file in zip(modes, progress, strict=True)
        ]
        found = Readers(processes, progress)
        assert found.wait(1)
        yield found
        found.stop()
