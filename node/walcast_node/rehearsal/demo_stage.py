"""The demo's processes, what they say, and bounded waits, which end at once when one dies or a reader objects."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from walcast import local
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.statedir import state_dir
from walcast.statusfile import read_status
from walcast.terms import TermStart, gaps_between, read_standing
from walcast_node.rehearsal.demo_child import Child
from walcast_node.rehearsal.demo_screen import (
    PHASES,
    Facts,
    Row,
    app_row,
    follower_row,
    gone_row,
    plain_line,
    primary_row,
    screen,
)

ORIGIN = "origin"
FOLLOWERS = ("edge-1", "edge-2")
NODES = (ORIGIN, *FOLLOWERS)
ACTING = ("primary", "fenced")

PATIENCE_S = 15.0
ANSWER_S = 5.0
LOOK_EVERY_S = 0.05
ASK_EVERY_S = 0.1
DRAW_EVERY_S = 0.2
LINE_EVERY_S = 1.0


class DemoError(WalcastError):
    """What was promised did not happen; the log of `child` may say why."""

    def __init__(self, what: str, child: Child | None = None) -> None:
        super().__init__(what)
        self.child = child


class Stage:
    """The processes, and what they show. `level` are the followers whose lag counts."""

    def __init__(self, folder: Path, console: Console, facts: Facts) -> None:
        self.folder, self.console, self.facts = folder, console, facts
        self.archive = str(folder / "archive")
        self.children: dict[str, Child] = {}  # those that must be alive
        self.said: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, dict[str, Any]] = {}  # of nodes, each in its present life
        self.rows: dict[str, Row] = {node: Row(node, state="waiting") for node in ("app", *NODES)}
        self.level: set[str] = set()
        self.killed: set[str] = set()  # and not started again
        self.primary = ORIGIN
        self.txid = self.archived_txid = 0
        self.interrupted = False
        self.began_s = time.monotonic()
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._phases: list[str] = []
        self._history: Sequence[TermStart] = ()
        self._asked_s = self._drawn_s = 0.0

    def interrupt(self, *_: object) -> None:
        """A signal: the next look ends the demo."""
        self.interrupted = True

    def database(self, node: str) -> Path:
        """The file of a node."""
        return self.folder / node / "app.db"

    # Processes

    def start(self, name: str, *arguments: str | Path) -> None:
        """A process that must live until it is stopped."""
        self.answers.pop(name, None)
        self.killed.discard(name)
        self.children[name] = Child(name, self.folder, *map(str, arguments))

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.level.discard(name)
        self.killed.add(name)
        self.children.pop(name).kill()

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

    def close(self) -> None:
        """Leave no process behind."""
        for child in self.children.values():
            child.kill()

    # Time

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

    # What is to be seen

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
        if draw or now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            self._ask()
        self.rows["app"] = app_row(self.said.get("app", {}), "app" in self.children)
        for name in NODES:
            self._see(name)
        if not due:
            return
        self._drawn_s = now_s
        rows = list(self.rows.values())
        if self.live:
            self.live.update(screen(self._phases, self.facts.passed, rows, self.console.width), refresh=True)
        elif not draw:
            self.console.print(plain_line(now_s - self.began_s, rows), soft_wrap=True)

    def _ask(self) -> None:
        """Every node that runs, for its role; then the primary is known, and what it has."""
        for name in NODES:
            if name in self.children:
                self._ask_node(name)
        acting = [name for name in NODES if name in self.children and self.role(name) == "primary"]
        if len(acting) > 1:
            raise DemoError(f"{' and '.join(acting)} say both that they are the primary", self.children[acting[1]])
        for name in acting:
            facts = self.answers[name]
            self.primary, self.txid = name, facts["txid"]
            self.archived_txid, self.facts.term = (facts["archive"] or {"txid": 0})["txid"], facts["term"]
            standing = read_standing(state_dir(self.database(name)))
            self._history = standing.history if standing else ()

    def _ask_node(self, name: str) -> None:
        """One that has not answered since its start is given time."""
        child = self.children[name]
        try:
            with local.ask(self.database(name), "status", timeout_s=ANSWER_S) as (answer, _):
                self.answers[name] = answer | answer["databases"][0] if "databases" in answer else answer
        except (Unavailable, ConfigError) as error:
            if name in self.answers:
                code = child.exit_code(LOOK_EVERY_S)
                what = f": {error}" if code is None else f" ended by itself with exit code {code}"
                raise DemoError(f"{name}{what}", child) from error

    def role(self, name: str) -> str:
        """What a node says that it is; "" while it says nothing."""
        return str(self.answers.get(name, {}).get("role", "")) if name in self.children else ""

    def _see(self, name: str) -> None:
        child, before = self.children.get(name), self.rows[name]
        wal = Path(f"{self.database(name)}-wal")
        wal_bytes = wal.stat().st_size if wal.exists() else None
        if self.role(name) in ACTING:
            row = primary_row(name, self.answers[name])
        elif child is None and before.role in (*ACTING, ""):
            row = gone_row(before, killed=name in self.killed)
        else:
            row = self._follower_row(name, child)
        self.rows[name] = replace(row, rows=self.said.get(f"reader-{name}", {}).get("rows"), wal_bytes=wal_bytes)
        if name in self.level:
            self.facts.disconnects += row.state == "disconnected" and before.state != "disconnected"
            self.facts.longest_lag_ms = max(self.facts.longest_lag_ms, round(row.lag_ms or 0.0, 1))

    def _follower_row(self, name: str, child: Child | None) -> Row:
        try:
            status = read_status(self.database(name))
        except Unavailable:
            status = None
        pid, role = child.process.pid if child else None, self.role(name) if child else "follower"
        behind = self._behind(status.position.txid) if status else 0
        return follower_row(name, status, pid, behind, time.time_ns(), role=role, killed=name in self.killed)

    def _behind(self, txid: int) -> int:
        """How many transactions of the primary's history are beyond `txid`, or beyond where that left this history."""
        begun = [term.start.txid for term in self._history if term.start.txid < txid < term.first_txid]
        txid = min([txid, *begun])
        return max(0, self.txid - txid - gaps_between(self._history, txid, self.txid))
