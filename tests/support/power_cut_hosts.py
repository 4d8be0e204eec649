"""Hosts that lose power: each has a disk of its own, a walcast node, an app and a reader on it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.forks import Forked, Forks
from support.nodes import poll
from support.power_cut import Disk, Writeback
from support.power_cut_ledger import rows

from walcast import local
from walcast.errors import WalcastError
from walcast.statedir import state_dir

LEVEL_S = 30.0
STARTING_S = 10.0


class Fault(AssertionError):
    """What must never be, was."""


def free_address() -> str:
    """HOST:PORT that nobody listens on now; a node keeps it over its restarts."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{made.getsockname()[1]}"


@dataclass
class Host:
    """One host: what is on its disk, and the processes that a power cut ends."""

    id: str
    disk: Disk
    outside: Path
    forks: Forks
    address: str
    arguments: list[str] = field(default_factory=list)
    app_options: dict[str, Any] = field(default_factory=dict)
    writeback: Writeback | None = None
    node: Forked | None = None
    app: Forked | None = None
    reader: Forked | None = None
    readers: int = 0
    discarded: set[str] = field(default_factory=set)
    strangers: list[str] = field(default_factory=list)
    said_bytes: int = 0

    @property
    def db(self) -> Path:
        return self.disk.path / "app.db"

    @property
    def report(self) -> Path:
        """What the reader that was started last says."""
        return self.outside / f"{self.id}.{self.readers}.reader"

    # Its processes

    @property
    def running(self) -> bool:
        return self.node is not None and self.node.running

    def start(self) -> None:
        """The node."""
        assert not self.running
        self.node = self._run("walcast", *self.arguments)

    def start_app(self) -> None:
        """Only while a node runs here: a write before it would be another story."""
        if self.app is None or not self.app.running:
            self.app = self._run(
                "power_cut_app.py", self.db, self.outside / f"{self.id}.ledger", json.dumps(self.app_options)
            )

    def start_reader(self) -> None:
        if self.reader is None or not self.reader.running:
            self.readers += 1
            self.reader = self._run("power_cut_reader.py", self.db, self.report)

    def _run(self, what: str, *arguments: str | Path) -> Forked:
        out, err = (self.outside / f"{self.id}.{Path(what).stem}.{kind}" for kind in ("out", "err"))
        return self.forks.run(what, *arguments, out=out, err=err)

    def stop_app(self) -> None:
        if self.app is not None:
            self.app.stop()
            self.app = None

    def end(self) -> None:
        """kill -9 of all that runs here."""
        for process in (self.node, self.app, self.reader):
            if process is not None:
                process.signal(signal.SIGKILL)
        for process in (self.node, self.app, self.reader):
            if process is not None:
                process.wait()
        self.node = self.app = self.reader = None

    # Power

    def freeze(self) -> None:
        """Nothing that runs here acts on anything any more; what the kernel does for it goes on."""
        for process in (self.node, self.app, self.reader):
            if process is not None:
                process.signal(signal.SIGSTOP)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """For the time of the block its node stands still, and waits for nothing in the kernel."""
        self.node.signal(signal.SIGSTOP) if self.node else None
        try:
            stopped = poll(lambda: self.node is None or not self.node.running or stands_still(self.node.pid), LEVEL_S)
            assert stopped, f"{self.id} does not stand still"
            yield
        finally:
            self.node.signal(signal.SIGCONT) if self.node else None

    def keep_writing_back(self, rng: random.Random, rate: float) -> None:
        """What the kernel does by itself, from now on until the next cut."""
        assert self.writeback is None
        self.writeback = Writeback(self.disk.path, rng, rate)

    def back(self) -> None:
        """It is back; nothing is started yet."""
        if self.writeback is not None:
            self.writeback.stop()
            self.writeback = None
        self.disk.back()

    def wipe(self) -> None:
        """There never was a database on this host."""
        self.end()
        shutil.rmtree(state_dir(self.db))
        for path in self.disk.path.glob("app.db*"):
            path.unlink()
        self.disk.sync()
        self.discarded.clear()

    # What it says

    def facts(self) -> dict[str, Any]:
        """Of its database, flat; `role` is "" while nobody answers."""
        try:
            with local.ask(self.db, "status", timeout_s=5.0) as (answer, _):
                facts = dict(answer)
        except (WalcastError, OSError, ValueError):
            return {"role": "", "term": 0, "txid": 0, "position": "", "state": "", "primary": "", "trouble": None}
        databases = facts.pop("databases", None)
        return facts | databases[0] if databases else facts

    def promote(self, *, force: bool = False) -> None:
        """What `walcast promote` does; what it answers is not waited for when the node is gone."""
        try:
            with local.ask(self.db, "promote", timeout_s=LEVEL_S, force=force):
                pass
        except (WalcastError, OSError):
            pass

    def said(self) -> list[dict[str, Any]]:
        """What the node logged since the last time."""
        path = self.outside / f"{self.id}.walcast.err"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self.said_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.said_bytes += len(whole)
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    def last_words(self) -> str:
        path = self.outside / f"{self.id}.walcast.err"
        return path.read_text()[-1500:] if path.exists() else ""

    def new_discarded(self) -> list[Path]:
        """Folders of `discarded/` that were not there the last time."""
        folder = state_dir(self.db) / "discarded"
        found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        new = [path for path in found if path.name not in self.discarded and not path.name.endswith(".tmp")]
        self.discarded.update(path.name for path in new)
        return new

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that reads, for a moment."""
        with closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True, isolation_level=None, timeout=10.0)) as db:
            yield db

    def rows_on_disk(self) -> dict[int, str]:
        """What stock SQLite finds in the files, in a copy: nothing is recovered in place."""
        with tempfile.TemporaryDirectory(dir=self.outside) as folder:
            copy = Path(folder) / "app.db"
            for end in ("", "-wal"):
                if Path(f"{self.db}{end}").exists():
                    shutil.copyfile(f"{self.db}{end}", f"{copy}{end}")
            if not copy.exists() or not copy.stat().st_size:
                return {}
            with closing(sqlite3.connect(copy, isolation_level=None)) as db:
                return rows(db)

    def _touch(self, late_s: float) -> None:
        now_s = time.time() + late_s
        for path in self.disk.path.glob("app.db*"):
            if path.is_file():
                os.utime(path, (now_s, now_s))

    def catch_up_with_the_clock(self) -> None:
        """After `write_alone`: on the disk no file is newer than now, whose time a cut might bring back."""
        self._touch(0.0)
        self.disk.sync()

    def write_alone(self, text: str) -> None:
        """An app commits before walcast runs here again, as late as on a machine that takes its time to start."""
        with closing(sqlite3.connect(self.db, isolation_level=None, timeout=5.0)) as db:
            db.execute("INSERT INTO strangers VALUES (?)", (text,))
        self._touch(STARTING_S)
        self.strangers.append(text)


def stands_still(pid: int) -> bool:
    """Is every thread of this process stopped, none inside a call?"""
    try:
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return all(state in "TtZX" for state in states)


def wait_whole(hosts: list[Host], seconds: float = LEVEL_S) -> tuple[Host, Host]:
    """Until one is the primary, and the other streams from it in its term: (primary, follower)."""
    found = poll(lambda: _whole(hosts), seconds, 0.005)
    if not found:
        states = {host.id: (host.running, {k: host.facts().get(k) for k in FACTS}) for host in hosts}
        words = "\n".join(f"--- {host.id}: {host.last_words()}" for host in hosts)
        raise Fault(f"the nodes do not come together within {seconds:.0f} s: {states}\n{words}")
    whole: tuple[Host, Host] = found
    return whole


FACTS = ("role", "term", "position", "state", "primary", "trouble")


def _whole(hosts: list[Host]) -> tuple[Host, Host] | None:
    facts = {host.id: host.facts() for host in hosts}
    primaries = [host for host in hosts if facts[host.id]["role"] == "primary" and not facts[host.id].get("trouble")]
    if len(primaries) != 1:
        return None
    primary = primaries[0]
    (other,) = (host for host in hosts if host is not primary)
    its, theirs = facts[primary.id], facts[other.id]
    streams = theirs.get("state") == "streaming" and theirs["primary"] == primary.address
    return (primary, other) if streams and theirs["term"] == its["term"] else None


def wait_level(primary: Host, follower: Host, seconds: float = LEVEL_S) -> str:
    """Until the follower is where the primary is, whose position this answers; nobody may be writing."""

    def level() -> str:
        at = str(primary.facts()["position"])
        return at if at and at == follower.facts()["position"] else ""

    found = poll(level, seconds, 0.003)
    if not found:
        raise Fault(f"not level: {primary.facts()} and {follower.facts()}\n{follower.last_words()}")
    return str(found)
