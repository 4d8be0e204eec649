"""`walcast demo`: the main job on this machine, with real processes in a temporary folder, and a plain verdict.

An app writes with stock sqlite3. A primary streams its commits to two followers, which began from the archive, a
folder. A reader on each replica keeps one stock connection and checks an invariant all along: while its follower is
killed and comes back, and while the primary is killed and a follower takes over. What the app had committed is counted
over all of it. At the end the files are compared byte for byte, and with what the archive restores to.
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import tempfile
import time
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from walcast.errors import WalcastError
from walcast.restore import restore
from walcast.store import open_store
from walcast_node.rehearsal.demo_files import checkpoint, commits_in, commits_kept, first_difference, integrity
from walcast_node.rehearsal.demo_screen import VICTIM, Facts, verdict
from walcast_node.rehearsal.demo_stage import FOLLOWERS, NODES, ORIGIN, PATIENCE_S, DemoError, Stage

COMMITS_PER_S = 200
LEASE_S = 2
HEAR_EVERY_S = 0.0005


class Demo(Stage):
    """The scenario. `lost` are the numbers of the commits that only the lost host had."""

    def __init__(self, folder: Path, console: Console, facts: Facts) -> None:
        super().__init__(folder, console, facts)
        self.lost: set[int] = set()

    def lead(self) -> None:
        """Start origin: the first time it becomes the primary."""
        self.start(ORIGIN, "walcast_node.cli", "primary", self.database(ORIGIN), self.archive, *self.flags(ORIGIN))

    def follow(self, name: str) -> None:
        """Start a follower."""
        where = ("--primary", self.said[ORIGIN]["listen"], "--archive", self.archive)
        self.start(name, "walcast_node.cli", "follower", self.database(name), *where, *self.flags(name))

    def flags(self, name: str) -> list[str]:
        """What every node is told, since the roles change."""
        listen = ["--listen", "127.0.0.1:0", "--id", name, "--json"]
        return [*listen, "--auto-failover", "--lease-time", str(LEASE_S)]

    def play(self, seconds: float) -> None:
        """All of it; the app writes for about `seconds`."""
        for node in NODES:
            self.database(node).parent.mkdir()
        self.begin("start")
        databases = [self.database(node) for node in NODES]
        self.start("app", "walcast_node.rehearsal.demo_app", "write", str(COMMITS_PER_S), *databases)
        self.until("the app's first commits", lambda: self.said.get("app"), "app")
        self.lead()
        self.until("a snapshot in the archive", lambda: self.archived_txid, ORIGIN)
        self.begin("bootstrap")
        for name in FOLLOWERS:
            self.follow(name)
        for name in FOLLOWERS:
            self.join(name)
            if "bootstrapped from the archive" not in self.children[name].log_path.read_text():
                raise DemoError(f"{name} did not begin from the archive", self.children[name])
            self.start(f"reader-{name}", "walcast_node.rehearsal.demo_app", "read", self.database(name))
        self.begin("write")
        self.pause(seconds / 5)
        self.kill_and_return(seconds / 5)
        self.pause(seconds / 5)
        self.fail_over(seconds / 5)
        self.end()
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
        self.kill(VICTIM)
        killed_s, reader = time.monotonic(), self.children[f"reader-{VICTIM}"]
        self.begin("kill")
        self.pause(seconds)
        rows = reader.said["rows"]
        self.read_on(VICTIM)
        started_s = time.monotonic()
        self.facts.down_s, self.facts.behind_txids = round(started_s - killed_s, 1), self.rows[VICTIM].behind or 0
        self.follow(VICTIM)
        self.begin("return")
        self.join(VICTIM)
        self.facts.level_again_s = round(time.monotonic() - started_s, 1)
        self.until("the reader sees the new commits", lambda: reader.said["rows"] > rows, reader.name)

    def read_on(self, name: str) -> None:
        """Until a reader has made another check."""
        reader = self.children[f"reader-{name}"]
        checks = reader.said["checks"]
        self.until(f"the reader on {name} reads on", lambda: reader.said["checks"] > checks, reader.name)

    def fail_over(self, seconds: float) -> None:
        """SIGKILL the primary under its app; a follower takes over, the app writes there, the old primary rejoins."""
        if self.primary != ORIGIN:
            raise DemoError(f"{ORIGIN} could not renew its lease in time, {self.primary} is the primary already")
        app = self.children["app"]
        self.level.clear()
        committed = self.lose_host()
        killed_s = time.monotonic()
        self.kill(ORIGIN)
        self.begin("failover")
        taken = "a follower that takes over, and the app's first write there"
        self.until(taken, lambda: app.said["database"] and self.role(self.primary) == "primary", FOLLOWERS[0])
        self.facts.first_write_s = round(app.said["since_s"] - killed_s, 2)
        self.facts.new_primary = self.primary
        self.begin("taken over")
        for name in FOLLOWERS:
            if name != self.primary:
                self.join(name)
            self.read_on(name)
        self.pause(seconds)
        started_s = time.monotonic()
        self.lead()
        self.begin("rejoin")
        self.join(ORIGIN)
        self.facts.rejoined_s = round(time.monotonic() - started_s, 1)
        self.count_lost(committed)
        self.pause(seconds / 2)

    def lose_host(self) -> int:
        """Tell the app that origin is gone, and wait until it has heard: how many commits it had there."""
        app, gone = self.children["app"], str(self.database(ORIGIN))
        app.tell(f"gone {gone}")
        end_s = time.monotonic() + PATIENCE_S
        while gone not in (said := app.said)["gone"]:  # what is replicated meanwhile is not lost: no time for a look
            if time.monotonic() > end_s:
                raise DemoError(f"the app has not heard within {PATIENCE_S:.0f} s that its host is gone", app)
            time.sleep(HEAR_EVERY_S)
        return int(said["commits"])

    def count_lost(self, committed: int) -> None:
        """Which commits the app made on the lost host that the new primary has not; they must be kept aside there."""
        lost = set(range(1, committed + 1)) - commits_in(self.database(self.primary))
        kept = commits_kept(self.database(ORIGIN)) if lost else {}
        if dropped := lost - kept.keys():
            raise DemoError(
                f"{len(dropped):,} of {len(lost):,} commits that only {ORIGIN} had are not kept there either"
            )
        self.lost, self.facts.lost_commits = lost, len(lost)
        self.facts.kept_in = sorted({str(kept[number].relative_to(self.folder)) for number in lost})

    def end(self) -> None:
        """The app stops, everybody gets level, the readers stop, then the nodes."""
        self.begin("level")
        self.stop("app")
        app = self.said["app"]
        self.facts.commits, self.facts.longest_commit_ms = app["commits"], round(app["longest_commit_ms"], 1)
        followers = [name for name in NODES if name != self.primary]
        for name in followers:
            self.until(f"{name} at the last commit", partial(self.is_at_the_end, name), name)
        for name in FOLLOWERS:
            what = f"the reader on {name} sees every commit"
            self.until(what, partial(self.sees_all, name, app["rows"]), f"reader-{name}")
        self.end_readers()
        self.stop(*followers)
        self.stop(self.primary)

    def is_at_the_end(self, name: str) -> bool:
        """Has a follower the primary's last position?"""
        self.facts.position = self.rows[self.primary].position
        return self.rows[name].position == self.facts.position

    def sees_all(self, name: str, rows: int) -> bool:
        """Does the reader of a replica see that many?"""
        return self.rows[name].rows == rows

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
        files = {node: self.database(node) for node in NODES}
        for database in files.values():
            checkpoint(database)
        files["restored"] = self.folder / "restored.db"
        with closing(open_store(self.archive)) as store:
            restore(store, files["restored"])
        for name, database in files.items():
            if (at := first_difference(files[self.primary], database)) is not None:
                raise DemoError(f"{name}: byte {at:,} differs from {self.primary}'s database", self.children.get(name))
            if (found := integrity(database)) != "ok":
                raise DemoError(f"{name}: integrity_check says {found}")
        told = set(range(1, self.facts.commits + 1))
        if missing := told - self.lost - commits_in(files[self.primary]):
            raise DemoError(f"{len(missing):,} commits of the app are missing, and were not lost with {ORIGIN}")
        self.facts.equal, self.facts.bytes = list(files), files[self.primary].stat().st_size


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
