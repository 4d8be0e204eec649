"""What the steps of a local drill share: the nodes, the load, bounded waits, and moments of one clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walcast.errors import WalcastError
from walcast.primary import Primary
from walcast_node.rehearsal.drill.facts import Mark, Result
from walcast_node.rehearsal.drill.ledger import Ledger
from walcast_node.rehearsal.drill.nodes import Archive, Node
from walcast_node.rehearsal.drill.processes import Process, Said
from walcast_node.rehearsal.drill.proxy import Proxies
from walcast_node.rehearsal.drill.watch import Look, Seen, Watch, ask

POLL_S = 0.01
LEVEL_S = 1.0


class Broken(WalcastError):
    """The drill cannot go on: what was waited for did not happen. `log` are last lines of who should have done it."""

    def __init__(self, what: str, log: list[str] | None = None) -> None:
        super().__init__(what)
        self.log = log or []


@dataclass(frozen=True, slots=True)
class Settings:
    """What a local drill is told."""

    lease_s: float = 3.0
    rate: float = 200.0
    calm_s: float = 0.7
    ballast_bytes: int = 16 << 20
    max_pause_ms: float = 250.0
    slack_s: float = 2.0
    patience_s: float = 20.0

    @property
    def most_s(self) -> float:
        """Whatever happens, it ends after so long."""
        return 240.0 + 20 * (self.lease_s + self.slack_s)


class Load:
    """The app, and a reader at each node."""

    def __init__(self, folder: Path, nodes: dict[str, Node], ledger: Ledger, lock: threading.Lock, rate: float) -> None:
        self.readers: dict[str, Process] = {}
        self.read: dict[str, Said] = {}
        self.said: Said = {}
        self._folder = folder
        self._nodes = nodes
        self._ledger = ledger
        self._lock = lock
        self._rate = rate
        self._told = 0
        self.app: Process | None = None

    def start(self) -> None:
        """Begin to write."""
        places = [f"{name}={node.database}" for name, node in self._nodes.items()]
        arguments = ["walcast_node.rehearsal.drill.app", "write", f"{self._rate:g}", *places]
        self.app = Process("app", arguments, self._folder / "app.log", self._heard)

    def start_reader(self, name: str) -> None:
        """Read at a node, from now on to the end."""
        arguments = ["walcast_node.rehearsal.drill.app", "read", str(self._nodes[name].database)]
        log = self._folder / f"reader-{name}.log"
        self.readers[name] = Process(f"reader {name}", arguments, log, lambda said: self.read.update({name: said}))

    def tell(self, line: str) -> None:
        """To the app."""
        assert self.app is not None
        self._told += 1
        self.app.tell(line)

    @property
    def is_paused(self) -> bool:
        """Has it heard everything, and does it rest?"""
        said = self.said
        return bool(said.get("paused")) and said["heard"] >= self._told

    def _heard(self, said: Said) -> None:
        with self._lock:
            for number, node, began_s, ended_s in said["done"]:
                self._ledger.commit(number, node, began_s, ended_s)
            self._ledger.unknown.update(said["unknown"])
            self._ledger.attempted = max(self._ledger.attempted, said["next"] - 1)
        self.said = said

    def end(self) -> None:
        """Stop writing and reading."""
        for process in (self.app, *self.readers.values()):
            if process is not None and process.exit_code is None:
                process.finish(by_signal=False)


@dataclass(slots=True)
class Stage:
    """A local drill while it is under way."""

    settings: Settings
    folder: Path
    archive: Archive
    proxies: Proxies
    nodes: dict[str, Node]
    ledger: Ledger
    lock: threading.Lock
    load: Load
    watch: Watch
    result: Result
    say: Callable[[str], None]
    began_s: float = field(default_factory=time.monotonic)
    began_wall_s: float = field(default_factory=time.time)
    interrupted: bool = False
    lost: set[int] = field(default_factory=set)

    @property
    def seen(self) -> Seen:
        return self.watch.seen

    def at(self, moment_s: float | None = None) -> float:
        """A moment of the monotonic clock, now if not given, in seconds since the drill began."""
        return round((time.monotonic() if moment_s is None else moment_s) - self.began_s, 4)

    def moment_of(self, wall: str) -> float:
        """What a log line says when it was, on the monotonic clock."""
        from walcast.moment import parse_moment

        return parse_moment(wall) / 1000 - self.began_wall_s + self.began_s

    def mark(self, text: str, node: str = "", at_s: float | None = None) -> None:
        """Something happened."""
        self.result.marks.append(Mark(self.at(at_s), node, text))

    def until(self, what: str, condition: Callable[[], Any], seconds: float | None = None, of: str = "") -> Any:
        """What the condition answers, once it is true. Broken when it is not in time, or a process ended by itself."""
        patience_s = self.settings.patience_s if seconds is None else seconds
        end_s = time.monotonic() + patience_s
        while not (answer := condition()):
            self.check()
            if time.monotonic() > end_s:
                process = self.nodes[of].process if of in self.nodes else None
                raise Broken(f"{what}: not within {patience_s:g} s", process.last_lines() if process else None)
            time.sleep(POLL_S)
        return answer

    def rest(self, seconds: float) -> None:
        """Let it run for a while."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.check()
            time.sleep(POLL_S)

    def check(self) -> None:
        """Interrupted, too late, or somebody died who should not have?"""
        if self.interrupted:
            raise KeyboardInterrupt
        if time.monotonic() - self.began_s > self.settings.most_s:
            raise Broken(f"the drill took longer than {self.settings.most_s:g} s")
        if self.watch.failure:
            raise Broken(f"the drill cannot look on any more: {self.watch.failure}")
        for node in self.nodes.values():
            if not node.absent and node.process is not None and node.process.exit_code is not None:
                code = node.process.exit_code
                raise Broken(f"node {node.name} ended by itself with exit code {code}", node.process.last_lines())
        for name, said in self.load.read.items():
            if said["broken"]:
                raise Broken(f"the reader of {name}: {said['broken'][0]}")
        for process in (self.load.app, *self.load.readers.values()):
            if process is not None and process.exit_code is not None:
                raise Broken(f"the {process.name} ended by itself", process.last_lines())

    def pause(self) -> float:
        """Until the app rests and everything it committed is in the ledger: since when."""
        self.load.tell("pause")
        self.until("the app rests", lambda: self.load.is_paused)
        return time.monotonic()

    def level(self) -> Look | None:
        """The primary's answer when all three are at one position and both others follow it. Everything that apps have
        committed is in it: the primary may be behind its own file for a moment."""
        primary = next(
            (node for node in self.nodes.values() if (look := self.seen.last(node.name)) and look.role == "primary"),
            None,
        )
        try:
            if primary is None or primary.ready is None:
                return None
            with Primary(primary.listen) as asked:
                token = asked.barrier(followers=len(self.nodes) - 1, timeout=LEVEL_S)
            looks = {name: ask(node) for name, node in self.nodes.items()}
        except WalcastError:
            return None
        primaries = [name for name, look in looks.items() if look.role == "primary"]
        if len(primaries) != 1:
            return None
        first = looks[primaries[0]]
        address = self.nodes[primaries[0]].address
        others = [look for name, look in looks.items() if name != primaries[0]]
        good = all(
            look.word == "follower" and look.primary == address and look.position == first.position for look in others
        )
        return first if good and first.position.txid >= token.txid else None
