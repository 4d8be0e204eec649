"""The step that has a set of its own: the primary's host loses power, and comes up again.

Its app runs with `synchronous=NORMAL`, as most do: SQLite then syncs the `-wal` in checkpoints only, and a power cut
may take whatever commits came after the last one. That is done here by hand, since a drill must not need root: app and
primary are killed, and of the `-wal` only a part is left, cut off between two commits. The drill sees to it that no
checkpoint came before. What a disk does that loses whatever was not synced is for the project's own tests.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from walcast.discarded import list_discarded
from walcast.errors import WalcastError
from walcast.primary import Primary
from walcast.wal import WAL_HEADER_SIZE, frame_dtype
from walcast_node.rehearsal.drill import sql
from walcast_node.rehearsal.drill.facts import Step, between
from walcast_node.rehearsal.drill.processes import Process, Said
from walcast_node.rehearsal.drill.stage import Broken, Stage

POWER = "power"
TITLE = "power cut of the primary"
WHAT = "its machine goes down and loses every write that was not synced; the app ran with synchronous=NORMAL"
NAME = "p"
ROWS = 60
RATE = 200.0
BARRIER_S = 10.0
PAGE_SIZE = 4096


@dataclass(slots=True)
class Heard:
    """What the processes of the step said."""

    done: dict[int, float] = field(default_factory=dict)  # rows, and when each was committed
    primary: Said = field(default_factory=dict)
    follower: Said = field(default_factory=dict)
    read: Said = field(default_factory=dict)

    def rows(self, said: Said) -> None:
        """From the app."""
        self.done.update({number: ended_s for number, _, _, ended_s in said["done"]})


def run(stage: Stage) -> None:
    """The step, to its end. Broken when it cannot go on."""
    step = Step(POWER, TITLE, WHAT, stage.at(), old=NAME, new=NAME)
    stage.result.steps.append(step)
    stage.say(f"{TITLE}: {WHAT}")
    try:
        with ExitStack() as stack:
            _play(stage, step, stack)
    finally:
        step.ended_s = stage.at()


def _play(stage: Stage, step: Step, stack: ExitStack) -> None:
    folder = stage.folder / POWER
    here, there = folder / NAME / "app.db", folder / "f" / "app.db"
    sql.create(here, 0)
    there.parent.mkdir(parents=True)
    heard = Heard()

    def start(name: str, arguments: list[str], tell: Any) -> Process:
        process = Process(name, arguments, folder / f"{name}.log", tell)
        stack.callback(_end, process)
        return process

    def serve(listen: str) -> Process:
        heard.primary = {}
        arguments = ["walcast_node.cli", "primary", str(here), "--listen", listen, "--json"]
        process = start("primary", arguments, lambda said: heard.primary.update(said))
        stage.until("the primary is ready", lambda: "listen" in heard.primary)
        return process

    primary = serve("127.0.0.1:0")
    listen = str(heard.primary["listen"])
    follow = ["walcast_node.cli", "follower", str(there), "--primary", listen, "--json"]
    start("follower", follow, lambda said: heard.follower.update(said))
    stage.until("the follower is ready", lambda: heard.follower)
    app = start("app", ["walcast_node.rehearsal.drill.app", "write-normal", f"{RATE:g}", f"{NAME}={here}"], heard.rows)
    start("reader", ["walcast_node.rehearsal.drill.app", "read", str(there)], lambda said: heard.read.update(said))
    stage.until(f"{ROWS} rows", lambda: len(heard.done) >= ROWS and heard.read)

    confirmed = set(heard.done)
    with Primary(here) as asked:
        asked.barrier(followers=1, timeout=BARRIER_S)
    fault_s = time.monotonic()
    step.fault_s = stage.at(fault_s)
    app.kill()
    primary.kill()
    left, of = _lose_tail(here, len(confirmed) // 2)
    step.notes.append(f"the power took {of - left} of {of} frames of the WAL")
    gone = len(confirmed - sql.numbers(_copy(here, folder / "taken.db")))

    serve(listen)
    step.healed_s = stage.at()
    step.first_write_ms = between(time.monotonic(), fault_s)
    step.notes.append(f"{gone} confirmed rows were not in the database when the machine came up")
    with Primary(here) as asked:
        asked.barrier(followers=1, timeout=BARRIER_S)
    _compare(stage, step, heard, confirmed, here, there)


def _compare(stage: Stage, step: Step, heard: Heard, confirmed: set[int], here: Path, there: Path) -> None:
    checks = heard.read["checks"]
    stage.until("the reader looks again", lambda: heard.read["checks"] > checks + 2)
    step.committed, step.acknowledged = len(heard.done), len(confirmed)
    missing = {str(path): confirmed - sql.numbers(path) for path in (here, there)}
    lost = set().union(*missing.values())
    evidence = f"{len(confirmed)} rows, {len(lost)} missing"
    promise = stage.result.promise
    promise("power.acknowledged", POWER, "what a barrier confirmed is there after a power cut", not lost, evidence)
    equal = sql.digest(here) == sql.digest(there)
    promise("power.equal", POWER, "both copies are equal", equal, "the same rows" if equal else "they differ")
    said = [sql.integrity(path) for path in (here, there)]
    promise("power.integrity", POWER, "integrity_check is ok on both", said == ["ok", "ok"], ", ".join(said))
    back = heard.read["back"] or heard.read["broken"]
    evidence = str(back[0]) if back else f"{heard.read['checks']} checks"
    promise("power.forward", POWER, "no reader of the follower went back", not back, evidence)
    kept = [str(folder.path.name) for path in (here, there) for folder in list_discarded(path)]
    promise("power.kept", POWER, "nothing had to be kept aside", not kept, ", ".join(kept) or "nothing")


def _lose_tail(database: Path, commits: int) -> tuple[int, int]:
    """Leave that many commits in the WAL, and forget the wal-index, as after a start of the machine: frames left, of
    how many."""
    wal = database.with_name(f"{database.name}-wal")
    data = wal.read_bytes()
    dtype = frame_dtype(PAGE_SIZE)
    count = (len(data) - WAL_HEADER_SIZE) // dtype.itemsize
    frames = np.frombuffer(data, dtype, count, WAL_HEADER_SIZE)
    same = (frames["salt"] == frames["salt"][0]).all(axis=1)
    ends = np.flatnonzero((frames["commit"] > 0) & same)
    if len(ends) <= commits:
        raise Broken(f"{wal}: has {len(ends)} commits, {commits + 1} are needed to lose some")
    left = int(ends[commits - 1]) + 1
    with wal.open("r+b") as file:
        file.truncate(WAL_HEADER_SIZE + left * dtype.itemsize)
    database.with_name(f"{database.name}-shm").unlink(missing_ok=True)
    return left, int(ends[-1]) + 1


def _copy(database: Path, target: Path) -> Path:
    """The database as a reader would find it now, which must not be touched."""
    for suffix in ("", "-wal"):
        target.with_name(target.name + suffix).write_bytes(database.with_name(database.name + suffix).read_bytes())
    return target


def _end(process: Process) -> None:
    try:
        if process.exit_code is None:
            process.finish(by_signal=True)
    except (OSError, WalcastError):
        process.kill()
