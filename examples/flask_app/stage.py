"""The three regions together, and what can be tried with them: distances, a line that arrives, a primary that is lost.

All that is said of a region comes from the status file beside its database, as an app reads it.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from examples.flask_app.bar import Bar, look
from examples.flask_app.delays import Gates, Link
from examples.flask_app.regions import PLACES, Region
from walcast.errors import StaleReplica, Unavailable, WalcastError
from walcast.primary import Primary
from walcast.replica import Replica
from walcast.statusfile import read_status
from walcast.token import Token

MOST_DISTANCE_MS = 400
MOST_HOLD_MS = 1500
HOLD_STEP_MS, HOLD_STEP_S = 40, 0.05  # a stream that falls silent at once looks like a primary that is lost
PATIENCE_S = 8.0
LINES_KEPT = 20
LOOK_S = 0.02
WATCH_S = 120.0

Facts = dict[str, Any]


class Refused(Exception):
    """It cannot be done now, or is not what was asked for: why."""


@dataclass(slots=True)
class Line:
    """A line on its way: `arrived_ms` by region, None where it is not yet, or was not within `PATIENCE_S`."""

    text: str
    region: str
    arrived_ms: dict[str, float | None]
    waiting: int


@dataclass(slots=True)
class Drill:
    """`killed`: the region that is down. Times in `events` are seconds since the kill."""

    killed: str = ""
    began_s: float = 0.0
    watching: bool = False
    events: list[Facts] = field(default_factory=list)


class Stage:
    """`settings` are those of the apps. Called from any thread, except for `start` and `end`."""

    def __init__(self, folder: Path, *, lease_s: float, workers: int, threads: int) -> None:
        self.gates = Gates(self._groups)
        self.gates.start()
        self.gates.links = {place.name: Link(place.distance_ms) for place in PLACES}
        self.archive = folder / "archive"
        self.archive.mkdir(parents=True, exist_ok=True)
        self.lease_s, self.workers, self.threads = lease_s, workers, threads
        self.regions = [Region(place, folder / place.slug, place is PLACES[0], self.gates) for place in PLACES]
        for region in self.regions:
            region.others = [other for other in self.regions if other is not region]
        self.settings: dict[str, str] = {}
        self._line: Line | None = None
        self._drill = Drill()
        self._lock = threading.Lock()

    def _groups(self) -> dict[str, set[int]]:
        return {region.name: {child.group for child in region.children} for region in self.regions}

    # What is

    def primary(self) -> Region | None:
        """The region that says so."""
        return next((region for region in self.regions if self._bar(region).state == "primary"), None)

    def is_level(self) -> bool:
        """Is there a primary, and do all others stream from it?"""
        return sorted(self._bar(region).state for region in self.regions) == ["primary", "streaming", "streaming"]

    def _bar(self, region: Region) -> Bar:
        return look(Replica(region.database), region.name)

    def state(self) -> Facts:
        """For the page."""
        primary, drill, line = self.primary(), self._drill, self._line
        return {
            "centre": PLACES[0].name,
            "lease_s": self.lease_s,
            "most_distance_ms": MOST_DISTANCE_MS,
            "most_hold_ms": MOST_HOLD_MS,
            "primary": primary.name if primary else None,
            "busy": drill.watching or (line is not None and line.waiting > 0),
            "regions": [self._facts(region) for region in self.regions],
            "line": line
            and {
                "text": line.text,
                "region": line.region,
                "waiting": line.waiting > 0,
                "patience_s": PATIENCE_S,
                "arrived_ms": line.arrived_ms,
            },
            "drill": {
                "killed": drill.killed,
                "can_return": any(region.name == drill.killed and not region.children for region in self.regions),
                "can_kill": not drill.killed and primary is not None and self.is_level(),
                "events": list(drill.events),
            },
        }

    def _facts(self, region: Region) -> Facts:
        bar, link = self._bar(region), self.gates.links[region.name]
        return {
            "name": region.name,
            "slug": region.place.slug,
            "url": region.url,
            "state": bar.state if region.children else "killed",
            "token": bar.token,
            "lag_ms": bar.lag_ms if math.isfinite(bar.lag_ms) else None,
            "distance_ms": link.distance_ms,
            "hold_ms": link.hold_ms,
        }

    # What can be tried

    def set_distances(self, fields: Facts) -> None:
        """`{SLUG-distance: ms, SLUG-hold: ms}`; all or none. Returns when they are in force, some seconds later when a
        stream is to be held back for longer."""
        wanted: dict[str, Link] = {}
        for region in self.regions[1:]:
            before, slug = self.gates.links[region.name], region.place.slug
            distance_ms = fields.get(f"{slug}-distance", before.distance_ms)
            hold_ms = fields.get(f"{slug}-hold", before.hold_ms)
            for name, value, most in (("distance", distance_ms, MOST_DISTANCE_MS), ("hold", hold_ms, MOST_HOLD_MS)):
                if type(value) is not int or not 0 <= value <= most:
                    raise Refused(f"{region.name}: 0 to {most} ms belong into the {name}, not {value!r}")
            wanted[region.name] = Link(distance_ms, hold_ms)
        while self.gates.links != (goal := self.gates.links | wanted):
            now = self.gates.links
            self.gates.links = {
                name: replace(link, hold_ms=min(link.hold_ms, now[name].hold_ms + HOLD_STEP_MS))
                for name, link in goal.items()
            }
            time.sleep(HOLD_STEP_S)

    def write_line(self, text: str) -> None:
        """One row, written at the primary as any program could; from then on every other region is watched."""
        primary = self.primary()
        if primary is None:
            raise Refused("There is no primary now, so there is nowhere to write. Try again in a moment.")
        try:
            with closing(sqlite3.connect(primary.database, timeout=2.0, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("INSERT INTO line (text) VALUES (?)", (text,))
                db.execute("DELETE FROM line WHERE id <= (SELECT max(id) FROM line) - ?", (LINES_KEPT,))
                db.execute("COMMIT")
                began_s = time.monotonic()
            token = Primary(primary.database).barrier()
        except (sqlite3.Error, WalcastError) as error:
            raise Refused(f"{primary.name} did not take the line: {error}") from error
        others = [region for region in primary.others if region.alive]
        line = Line(text, primary.name, dict.fromkeys(region.name for region in self.regions), len(others))
        line.arrived_ms[primary.name] = 0.0
        self._line = line
        for region in others:
            threading.Thread(target=self._await, args=(line, region, token, began_s), daemon=True).start()

    def _await(self, line: Line, region: Region, token: Token, began_s: float) -> None:
        try:
            Replica(region.database).wait_for(token, PATIENCE_S)
            line.arrived_ms[region.name] = round((time.monotonic() - began_s) * 1000, 1)
        except StaleReplica:
            pass
        with self._lock:
            line.waiting -= 1

    def kill(self, delay_s: float = 0.3) -> Facts:
        """The primary's region, after `delay_s`: the answer to whoever asked may go through its app."""
        with self._lock:
            primary = self.primary()
            if self._drill.killed or primary is None:
                raise Refused("One region is down already." if self._drill.killed else "There is no primary to kill.")
            self._drill = Drill(killed=primary.name)
        threading.Timer(delay_s, self._kill, (primary, self._drill)).start()
        return {"killed": primary.name, "next": primary.others[0].url}

    def _kill(self, region: Region, drill: Drill) -> None:
        before = {other.name: self._stands(other) for other in self.regions}
        drill.began_s = time.monotonic()
        self._say(drill, f"{region.name} is gone: kill -9 for its walcast and its app")
        region.kill()
        self._watch(drill, before)

    def bring_back(self) -> Facts:
        """The region that was killed, with the commands that it always had."""
        with self._lock:
            drill = self._drill
            region = next((r for r in self.regions if r.name == drill.killed and not r.children), None)
            if region is None:
                raise Refused("Nothing is down.")
            region.reopen()
            region.start_node(self.archive, self.lease_s)
            region.start_app(self.settings, self.workers, self.threads)
            drill.killed = ""
        self._say(drill, f"{region.name} is started again")
        threading.Thread(target=self._bring_back, args=(region, drill), daemon=True).start()
        return {"started": region.name}

    def _bring_back(self, region: Region, drill: Drill) -> None:
        end_s = time.monotonic() + WATCH_S
        while not region.node_is_ready() and time.monotonic() < end_s:
            time.sleep(LOOK_S)
        if not drill.watching:
            self._watch(drill, {other.name: self._stands(other) for other in region.others} | {region.name: ""})

    # What is seen of it

    def _say(self, drill: Drill, text: str) -> None:
        drill.events.append({"at_s": time.monotonic() - drill.began_s, "text": text})

    def _stands(self, region: Region) -> str:
        """In words; "" for a region that is down or just about to change."""
        bar = self._bar(region)
        if not region.children or bar.state in ("stopped", "absent", "bootstrapping", "catching-up", "fenced"):
            return ""
        if bar.state == "primary":
            return f"is the primary, in term {Token(bar.token).term}"
        if bar.state == "streaming":
            leader = next((r.name for r in self.regions if r.address == _primary_of(region)), "another one")
            return f"follows {leader}"
        return "has lost its primary" if bar.state == "disconnected" else f"is {bar.state}"

    def _watch(self, drill: Drill, before: dict[str, str]) -> None:
        """Note every change until all that are up have settled."""
        drill.watching, end_s = True, time.monotonic() + WATCH_S
        try:
            while time.monotonic() < end_s and drill is self._drill:
                time.sleep(LOOK_S)
                now = {region.name: self._stands(region) for region in self.regions}
                for name, stands in now.items():
                    if stands and stands != before[name]:
                        self._say(drill, f"{name} {stands}")
                        before[name] = stands
                up = [stands for name, stands in now.items() if name != drill.killed]
                leaders = [stands for stands in up if stands.startswith("is the primary")]
                if len(leaders) == 1 and all(stands.startswith(("is the", "follows")) for stands in up):
                    return
        finally:
            drill.watching = False


def _primary_of(region: Region) -> str:
    try:
        return read_status(region.database).primary
    except Unavailable:
        return ""
