"""Failover: the write pause of a switchover, the first write after a kill -9, what a rejoin moves.

Three nodes on one machine with a lease in a folder, and an app that writes 200 rows a second to whichever node takes
them, trying the next one when one is locked. A rejoin: a database of 1 GiB, of which the old primary alone has rows on
100 pages; every byte between it and the new primary goes through a proxy that counts.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.harness import GIB, MIB, ROOT, BenchError, Child, Run, make_database, say, wait_for_row, wait_until
from bench.measure import Measure
from bench.s3 import counted

PER_S = 200
LEASE_S = 3.0
PAGES = GIB // 4096
CHANGED_PAGES = 100


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    pauses, held, lost = _switchovers(run, 3 if run.quick else 12)
    beyond = _kills(run, 2 if run.quick else 6)
    moved, seconds, kept = _rejoin(run, 2000 if run.quick else PAGES)
    return [
        Measure("switchover: longest time between two commits of the app", "ms", pauses, at_most=250.0),
        Measure("switchover: writers held, as the command says", "ms", held),
        Measure("switchover: rows lost", "", [lost], at_most=0, note=f"of {PER_S} rows/s in {len(pauses)} switchovers"),
        Measure(
            "kill -9: first write on a follower, beyond the lease's time",
            "s",
            beyond,
            at_most=2.0,
            note=f"with a lease of {LEASE_S:.0f} s, which may be up to a third old then",
        ),
        Measure(
            "rejoin: bytes between the nodes",
            "MiB",
            [moved / MIB],
            at_most=10.0,
            note=f"1 GiB; {kept} files kept aside",
        ),
        Measure("rejoin: from the start of the process to level", "s", [seconds]),
    ]


class Set:
    """Nodes a, b, c of one database, with their archive."""

    def __init__(self, run: Run, folder: Path, names: str, lease_s: float) -> None:
        self.run = run
        self.dbs = {name: folder / name / "app.db" for name in names}
        self.nodes: dict[str, Child] = {}
        self.addresses: dict[str, str] = {}
        self._archive = folder / "archive"
        self._flags = ["--auto-failover", "--lease-time", lease_s, "--json"]
        for db in self.dbs.values():
            db.parent.mkdir(exist_ok=True)

    def start(self, name: str, *more: object) -> None:
        """A node; the first one is the primary."""
        db = self.dbs[name]
        if not self.nodes or "--as-primary" in more:
            what: list[object] = ["primary", db, self._archive]
        else:
            first = next(iter(self.addresses.values()))
            what = ["follower", db, "--primary", first, "--archive", self._archive]
        extra = [flag for flag in more if flag != "--as-primary"]
        command = [*what, "--listen", "127.0.0.1:0", "--id", name, *self._flags, *extra]
        self.nodes[name] = self.run.start(name, [sys.executable, "-m", "walcast_node.cli", *map(str, command)])
        self.addresses[name] = self.nodes[name].json()["listen"]

    def status(self, name: str) -> Any:
        """What `walcast status DB --json` prints."""
        command = [sys.executable, "-m", "walcast_node.cli", "status", str(self.dbs[name]), "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {"role": "", "error": done.stderr}


def _switchovers(run: Run, rounds: int) -> tuple[list[float], list[float], float]:
    """Pause as the app saw it and as the command says, of each; rows that are in the end not everywhere."""
    with run.stage() as folder:
        nodes = Set(run, folder, "abc", LEASE_S)
        make_database(nodes.dbs["a"])
        for name in "abc":
            nodes.start(name)
        for name in "bc":
            wait_until(lambda name=name: nodes.dbs[name].exists(), f"replica {name}")  # type: ignore[misc]
        app = run.worker("moving", ",".join(map(str, nodes.dbs.values())), rounds * 1.5 + 2, PER_S)
        app.go()
        begins, held = [], []
        time.sleep(1.0)
        for i in range(rounds):
            at, to = "abc"[i % 3], "abc"[(i + 1) % 3]
            begins.append(time.monotonic_ns())
            command = ["switchover", nodes.addresses[at], "--to", to, "--json"]
            done = subprocess.run(
                [sys.executable, "-m", "walcast_node.cli", *command],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise BenchError(f"switchover to {to}: {done.stderr}")
            held.append(json.loads(done.stdout)["pause_ms"])
            time.sleep(0.7)
        returned = [ns for ns, _ in app.json()["returned"]]
        gaps = [(b, (b - a) / 1e6) for a, b in pairwise(returned)]
        ends = [*begins[1:], returned[-1]]
        pauses = [max(gap for at, gap in gaps if begin <= at <= end) for begin, end in zip(begins, ends, strict=True)]
        for db in nodes.dbs.values():
            wait_for_row(db, len(returned))
        rows = min(_rows(db) for db in nodes.dbs.values())
    shown = ", ".join(f"{pause:.0f}" for pause in pauses)
    say(f"switchover: pauses {shown} ms; {len(returned)} rows written, {rows} everywhere")
    return pauses, held, len(returned) - rows


def _kills(run: Run, rounds: int) -> list[float]:
    """Seconds from kill -9 until somebody could write on another node, less the lease's time."""
    beyond = []
    for _ in range(rounds):
        with run.stage() as folder:
            nodes = Set(run, folder, "abc", LEASE_S)
            make_database(nodes.dbs["a"])
            for name in "abc":
                nodes.start(name)
            app = run.worker("paced", nodes.dbs["a"], 400, PER_S)
            app.go()
            app.json()
            dbs = [sqlite3.connect(nodes.dbs[name], isolation_level=None, timeout=0) for name in "bc"]
            nodes.nodes["a"].signal(signal.SIGKILL)
            began_s = time.monotonic()
            beyond.append(_first_write(dbs, began_s) - LEASE_S)
            for db in dbs:
                db.close()
    say(f"kill -9: first write {', '.join(f'{b:+.2f}' for b in beyond)} s beyond the lease's time")
    return beyond


def _first_write(dbs: list[sqlite3.Connection], began_s: float) -> float:
    while time.monotonic() - began_s < 60:
        for db in dbs:
            try:
                db.execute("INSERT INTO t (v) VALUES ('first')")
            except sqlite3.OperationalError:
                continue
            return time.monotonic() - began_s
        time.sleep(0.002)
    raise BenchError("nobody took over within a minute")


def _rejoin(run: Run, pages: int) -> tuple[int, float, int]:
    """Bytes moved, seconds, rows kept aside."""
    with run.stage() as folder:
        nodes = Set(run, folder, "ab", LEASE_S)
        make_database(nodes.dbs["a"])
        builder = run.worker("build", nodes.dbs["a"], pages)
        builder.go()
        builder.json()
        nodes.start("a")
        # b's followers reach it through a proxy; it says so in the lease, so the old primary does, too.
        listener = run.keep(counted("http://127.0.0.1:1"))
        nodes.start("b", "--advertise", listener.endpoint.removeprefix("http://"))
        listener.point_to(nodes.addresses["b"])
        wait_for_row(nodes.dbs["b"], pages)
        nodes.nodes["a"].signal(signal.SIGKILL)
        alone = sqlite3.connect(nodes.dbs["a"], isolation_level=None)
        changed = [1 + i * (pages // CHANGED_PAGES) for i in range(CHANGED_PAGES)]
        for rowid in changed:
            alone.execute("UPDATE t SET v = zeroblob(3900) WHERE id = ?", (rowid,))
        alone.close()
        other = sqlite3.connect(nodes.dbs["b"], isolation_level=None, timeout=0)
        _first_write([other], time.monotonic())
        before, began_s = listener.data, time.monotonic()
        nodes.start("a", "--as-primary")
        wait_for_row(nodes.dbs["a"], pages + 1)
        seconds = time.monotonic() - began_s
        moved = listener.data - before
        same = [_rows(db, "v = zeroblob(3900)") for db in nodes.dbs.values()]
        kept = list((folder / "a" / "app.db-walcast" / "discarded").glob("*/*.ltx"))
        other.close()
    if same != [0, 0] or not kept:
        raise BenchError(f"after the rejoin: {same} of the old rows, {len(kept)} files kept")
    say(f"rejoin: {moved / MIB:.1f} MiB in {seconds:.1f} s; {len(kept)} files kept aside")
    return moved, seconds, len(kept)


def _rows(path: Path, where: str = "1") -> int:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        return int(db.execute(f"SELECT count(*) FROM t WHERE {where}").fetchone()[0])
    finally:
        db.close()
