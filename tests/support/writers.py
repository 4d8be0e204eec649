"""Apps for tests: stock SQLite in processes of their own, which write, read, or do what they are told."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.history import Observation, read_history
from support.nodes import ENVIRONMENT, PATIENCE_S, TESTS, poll

# How an app that does everything behaves.
WILD = {"transfer": 80, "grow": 12, "forget": 4, "rollback": 3, "schema": 2, "vacuum": 1}
WILD |= {"checkpoint": 4, "autocheckpoint": 2, "reconnect": 2}
CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")
AUTOCHECKPOINTS = [0, 1, 7, 100, 1000]


class Child:
    """A script of `support`, with pipes."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "support" / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.facts: dict[str, Any] = {}
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def finish(self) -> dict[str, Any]:
        """Until it has ended by itself: what it says at the end."""
        self.facts = json.loads(self.line() or "{}")
        assert self.process.wait(PATIENCE_S) == 0
        return self.facts

    def stop(self) -> dict[str, Any]:
        """Ask it to end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.finish()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def end(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def child(script: str, *arguments: str) -> Iterator[Child]:
    """Ended with the block."""
    made = Child(script, *arguments)
    try:
        yield made
    finally:
        made.end()


@contextmanager
def writer(db: Path, **options: Any) -> Iterator[Child]:
    """An app that writes until `stop`, or until its `operations` are done (`finish`)."""
    with child("e2e_writer.py", str(db), json.dumps(options, default=str)) as made:
        yield made


class Sql:
    """A stock connection in another process."""

    def __init__(self, made: Child) -> None:
        self._child = made
        self.seconds = 0.0

    def ask(self, sql: str, *values: Any) -> dict[str, Any]:
        """Rows, or the error's text."""
        assert self._child.process.stdin is not None
        print(json.dumps([sql, values]), file=self._child.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._child.line())
        self.seconds = answer["seconds"]
        return answer

    def __call__(self, sql: str, *values: Any) -> list[list[Any]]:
        """Rows of a statement that must succeed; several statements end with a semicolon."""
        answer = self.ask(sql, *values)
        assert answer["error"] is None, f"{sql}: {answer['error']}"
        rows: list[list[Any]] = answer["rows"]
        return rows

    def error(self, sql: str, *values: Any) -> str:
        """The error of a statement that must fail."""
        answer = self.ask(sql, *values)
        assert answer["error"] is not None, f"{sql}: {answer['rows']}"
        text: str = answer["error"]
        return text

    def kill(self) -> None:
        """kill -9."""
        self._child.kill()


@contextmanager
def sql(db: Path, timeout_s: float = 10.0) -> Iterator[Sql]:
    """Stock SQLite at the end of a pipe."""
    with child("e2e_sql.py", str(db), str(timeout_s)) as made:
        yield Sql(made)
        if made.process.poll() is None:
            made.stop()  # closes its connection, which may be the last one


@dataclass
class Readers:
    """Readers of one replica, and what they saw."""

    children: list[Child]
    files: list[Path]
    facts: list[dict[str, Any]] = field(default_factory=list)

    def histories(self) -> dict[str, list[Observation | str]]:
        return {file.name: read_history(file) for file in self.files}

    def wait(self, more: int = 2) -> None:
        """Until every one has seen `more` further snapshots."""
        before = [len(h) for h in self.histories().values()]

        def done() -> bool:
            return all(len(h) >= b + more for h, b in zip(self.histories().values(), before, strict=True))

        assert poll(done, every_s=0.02), "readers stand still"

    def stop(self) -> None:
        self.facts = [made.stop() for made in self.children]


@contextmanager
def readers(db: Path, directory: Path, modes: tuple[str, ...] = ("short", "long", "new")) -> Iterator[Readers]:
    """Readers of `db` until `stop`, their histories in `directory`."""
    with ExitStack() as stack:
        files = [directory / f"{db.parent.name}-{i}-{mode}.history" for i, mode in enumerate(modes)]
        for file in files:
            file.touch()
        children = [
            stack.enter_context(child("e2e_reader.py", str(db), mode, str(file)))
            for mode, file in zip(modes, files, strict=True)
        ]
        yield Readers(children, files)


# Files


def checkpointed(db: Path) -> bytes:
    """Everything into the file, by stock SQLite, and the file's bytes. Nobody else may have it open."""
    connection = sqlite3.connect(db, isolation_level=None, timeout=10.0)
    busy = poll(lambda: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, 10.0)
    connection.close()
    assert busy, f"{db} cannot be checkpointed"
    return db.read_bytes()


def seen_from_outside(db: Path) -> bytes:
    """The bytes of a file that this process must not open and close itself (POSIX locks)."""
    return subprocess.run(["cat", str(db)], capture_output=True, check=True).stdout


def pause(seconds: float) -> None:
    """Let a random moment pass before a kill; never a wait for something to happen."""
    time.sleep(seconds)
