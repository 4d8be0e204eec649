"""`walcast demo`: the main job on this machine, with real processes in a temporary folder, and a plain verdict.

An app writes with stock sqlite3. A primary streams its commits to two followers, which began from the archive, a
folder. A reader on each replica keeps one stock connection and checks an invariant all along, also while its follower
is killed and comes back. At the end the files are compared byte for byte, and with what the archive restores to.
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from node.demo_app import Child, checkpoint, first_difference, integrity
from node.demo_screen import PHASES, VICTIM, Facts, Row, follower_row, plain_line, screen, verdict
from node.status import primary_status
from walcast import wire
from walcast.errors import Unavailable, WalcastError
from walcast.restore import restore
from walcast.statusfile import read_status
from walcast.store import open_store

FOLLOWERS = ("edge-1", "edge-2")
COMMITS_PER_S = 200
PATIENCE_S = 15.0
LOOK_EVERY_S = 0.05
ASK_EVERY_S = 0.1
DRAW_EVERY_S = 0.2
LINE_EVERY_S = 1.0


class DemoError(WalcastError):
    """What was promised did not happen; the log of `child` may say why."""

    def __init__(self, what: str, child: Child | None = None) -> None:
        super().__init__(what)
        self.child = child


class Demo:
    """The processes, and what they show. Every wait is bounded, and sees a child die."""

    def __init__(self, folder: Path, console: Console, facts: Facts) -> None:
        self.folder, self.console, self.facts = folder, console, facts
        self.archive = str(folder / "archive")
        self.children: dict[str, Child] = {}  # those that must be alive
        self.said: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, Row] = {node: Row(node, "waiting") for node in ("app", "primary", *FOLLOWERS)}
        self.level: set[str] = set()
        self.killed: set[str] = set()  # and not started again
        self.txid = self.archived_txid = 0
        self.interrupted = False
        self.began_s = time.monotonic()
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._phases: list[str] = []
        self._asked_s = self._drawn_s = 0.0

    def interrupt(self, *_: object) -> None:
        """A signal: the next look ends the demo."""
        self.interrupted = True

    def database(self, node: str) -> Path:
        """The file of the app, which is the primary's, or of a follower."""
        return self.folder / node / "app.db"

    def start(self, name: str, *arguments: str | Path) -> None:
        """A process that must live until it is stopped."""
        self.children[name] = Child(name, self.folder, *map(str, arguments))

    def follow(self, name: str) -> None:
        """Start a follower."""
        address = self.children["primary"].said["listen"]
        flags = ("--primary", address, "--archive", self.archive, "--id", name, "--json")
        self.start(name, "node.cli", "follower", self.database(name), *flags)

    def stop(self, *names: str) -> None:
        """End them in an orderly way."""
        for name in names:
            self.children[name].ask_to_stop()
        for name in names:
            child = self.children[name]
            try:
                code = child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise DemoError(f"{name} did not stop within {PATIENCE_S:.0f} s", child) from None
            if code:
                raise DemoError(f"{name} did not stop cleanly: exit code {code}", child)
            self.said[name] = self.children.pop(name).said

    def begin(self, phase: str) -> None:
        """Tell people what comes now."""
        self._phases.append(phase)
        if self.live is None:
            self.console.print(f"{time.monotonic() - self.began_s:5.1f} s  {PHASES[phase]}", soft_wrap=True)
        self.look(draw=True)

    def until(self, what: str, condition: Callable[[], object], of: str) -> None:
        """Look, and show, until it is so."""
        self.pause(PATIENCE_S, condition)
        if not condition():
            raise DemoError(f"{what}: not within {PATIENCE_S:.0f} s", self.children.get(of))

    def pause(self, seconds: float, condition: Callable[[], object] = lambda: False) -> None:
        """Look, and show, for so long."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not condition():
            time.sleep(LOOK_EVERY_S)
            self.look()

    def look(self, *, draw: bool = False) -> None:
        """Are all alive, is every reader content? Then show where they are."""
        if self.interrupted:
            raise KeyboardInterrupt
        for child in self.children.values():
            self.said[child.name] = child.said
            if broken := child.said.get("broken"):
                raise DemoError(f"{child.name}: {broken[0]}", child)
            if (code := child.process.poll()) is not None:
                raise DemoError(f"{child.name} ended by itself with exit code {code}", child)
        now_s = time.monotonic()
        due = draw or now_s - self._drawn_s >= (DRAW_EVERY_S if self.live else LINE_EVERY_S)
        app_rows = self.said.get("app", {}).get("rows")
        self.rows["app"] = Row("app", "writing" if "app" in self.children else "stopped", rows=app_rows)
        if draw or now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            self._ask_primary()
        for name in FOLLOWERS:
            self._see_follower(name)
        if not due:
            return
        self._drawn_s = now_s
        rows = list(self.rows.values())
        if self.live:
            self.live.update(screen(self._phases, self.facts.passed, rows, self.console.width), refresh=True)
        elif not draw:
            self.console.print(plain_line(now_s - self.began_s, rows), soft_wrap=True)

    def _ask_primary(self) -> None:
        primary = self.children.get("primary")
        if primary is None:
            self.rows["primary"] = replace(self.rows["primary"], state="stopped" if self.txid else "waiting")
        elif "listen" not in primary.said:
            self.rows["primary"] = Row("primary", "starting")
        else:
            try:
                (facts,) = primary_status(wire.Address.parse(primary.said["listen"]), wire.Tls())["databases"]
            except Unavailable as error:
                code = primary.exit_code(LOOK_EVERY_S)
                what = f": {error}" if code is None else f" ended by itself with exit code {code}"
                raise DemoError(f"primary{what}", primary) from error
            self.txid, self.archived_txid = facts["txid"], facts["archive"]["txid"]
            self.rows["primary"] = Row("primary", "serving", facts["position"], wal_bytes=facts["wal_bytes"])

    def _see_follower(self, name: str) -> None:
        child, rows = self.children.get(name), self.said.get(f"reader-{name}", {}).get("rows")
        try:
            status = read_status(self.database(name))
        except Unavailable:
            status = None
        pid, killed = child.process.pid if child else None, name in self.killed
        row = follower_row(name, status, pid, self.txid, time.time_ns(), killed=killed)
        wal, before = Path(f"{self.database(name)}-wal"), self.rows[name].state
        self.rows[name] = replace(row, rows=rows, wal_bytes=wal.stat().st_size if wal.exists() else None)
        if name in self.level:
            self.facts.disconnects += row.state == "disconnected" and before != "disconnected"
            self.facts.longest_lag_ms = max(self.facts.longest_lag_ms, round(row.lag_ms or 0.0, 1))

    def play(self, seconds: float) -> None:
        """The scenario."""
        for node in ("app", *FOLLOWERS):
            self.database(node).parent.mkdir()
        self.begin("start")
        self.start("app", "node.demo_app", "write", self.database("app"), str(COMMITS_PER_S))
        self.until("the app's first commits", lambda: self.said.get("app"), "app")
        listen = ("--listen", "127.0.0.1:0", "--json")
        self.start("primary", "node.cli", "primary", self.database("app"), self.archive, *listen)
        self.until("a snapshot in the archive", lambda: self.archived_txid, "primary")
        self.begin("bootstrap")
        for name in FOLLOWERS:
            self.follow(name)
        for name in FOLLOWERS:
            self.join(name)
            if "bootstrapped from the archive" not in self.children[name].log_path.read_text():
                raise DemoError(f"{name} did not begin from the archive", self.children[name])
            self.start(f"reader-{name}", "node.demo_app", "read", self.database(name))
        self.begin("write")
        self.pause(seconds / 3)
        self.kill_and_return(seconds / 3)
        self.pause(seconds / 3)
        self.begin("level")
        self.stop("app")
        app = self.said["app"]
        self.facts.commits, self.facts.longest_commit_ms = app["commits"], round(app["longest_commit_ms"], 1)
        for name in FOLLOWERS:
            self.until(f"{name} at the last commit", partial(self.is_at_the_end, name, app["rows"]), name)
        self.end_readers()
        self.stop(*FOLLOWERS)
        self.stop("primary")
        self.begin("compare")
        self.compare()
        self.facts.passed = True
        self.look(draw=True)

    def join(self, name: str) -> None:
        """Until a follower has caught up and streams; from then on its lag counts."""
        self.until(f"{name} level", lambda: self.rows[name].state == "streaming" and not self.rows[name].behind, name)
        self.level.add(name)

    def kill_and_return(self, seconds: float) -> None:
        """SIGKILL a follower under its reader, leave it dead for a while, start it again."""
        self.level.discard(VICTIM)
        self.children.pop(VICTIM).kill()
        self.killed.add(VICTIM)
        killed_s, reader = time.monotonic(), self.children[f"reader-{VICTIM}"]
        self.begin("kill")
        self.pause(seconds)
        rows, checks = reader.said["rows"], reader.said["checks"]
        self.until("the reader of the dead replica reads on", lambda: reader.said["checks"] > checks, reader.name)
        started_s = time.monotonic()
        self.facts.down_s, self.facts.behind_txids = round(started_s - killed_s, 1), self.rows[VICTIM].behind or 0
        self.killed.discard(VICTIM)
        self.follow(VICTIM)
        self.begin("return")
        self.join(VICTIM)
        self.facts.level_again_s = round(time.monotonic() - started_s, 1)
        self.until("the reader sees the new commits", lambda: reader.said["rows"] > rows, reader.name)

    def is_at_the_end(self, name: str, rows: int) -> bool:
        """Has a follower the primary's last position, and does its reader see all rows?"""
        row, self.facts.position = self.rows[name], self.rows["primary"].position
        return row.position == self.facts.position and row.rows == rows

    def end_readers(self) -> None:
        """What they found, to their last check."""
        names = [f"reader-{name}" for name in FOLLOWERS]
        self.stop(*names)
        for said in (self.said[name] for name in names):
            self.facts.checks += said["checks"]
            self.facts.longest_read_ms = max(self.facts.longest_read_ms, round(said["longest_read_ms"], 1))
            if said["broken"]:
                raise DemoError(f"a reader: {said['broken'][0]}")

    def compare(self) -> None:
        """The files of all three, and what the archive restores to. Nobody has them open any more."""
        files = {node: self.database(node) for node in ("app", *FOLLOWERS)}
        for database in files.values():
            checkpoint(database)
        files["restored"] = self.folder / "restored.db"
        with closing(open_store(self.archive)) as store:
            restore(store, files["restored"])
        for name, database in files.items():
            if (at := first_difference(files["app"], database)) is not None:
                raise DemoError(f"{name}: byte {at:,} differs from the app's database", self.children.get(name))
            if (found := integrity(database)) != "ok":
                raise DemoError(f"{name}: integrity_check says {found}")
        self.facts.equal, self.facts.bytes = list(files), files["app"].stat().st_size

    def close(self) -> None:
        """Leave no process behind."""
        for child in self.children.values():
            child.kill()


def run_demo(*, seconds: float, keep: bool, as_json: bool) -> bool:
    """Play it, print the verdict, leave nothing behind; False when something failed."""
    facts, console = Facts(), Console(stderr=as_json, highlight=False)
    demo = Demo(Path(tempfile.mkdtemp(prefix="walcast-demo-")), console, facts)
    log_lines: list[str] = []
    before = {
        number: signal.signal(number, demo.interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        with demo.live or nullcontext():
            demo.play(seconds)
    except DemoError as error:
        facts.failure, log_lines = str(error), error.child.last_lines() if error.child else []
    except (WalcastError, OSError, sqlite3.Error) as error:
        facts.failure = f"{type(error).__name__}: {error}"
    finally:
        demo.close()
        if not keep:
            shutil.rmtree(demo.folder)
        for number, handler in before.items():
            signal.signal(number, handler)
    facts.seconds = round(time.monotonic() - demo.began_s, 1)
    facts.folder = str(demo.folder) if keep else None
    first, *others = verdict(facts, log_lines)
    console.print(first, soft_wrap=True, markup=False, style="bold green" if facts.passed else "bold red")
    for line in others:
        console.print(line, soft_wrap=True, markup=False)
    if keep:
        console.print(f"  kept: {demo.folder}", soft_wrap=True)
    if as_json:
        print(json.dumps(asdict(facts)))
    return facts.passed
