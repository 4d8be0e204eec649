"""The staleness oracle: how old a replica is in truth, against what walcast says of it.

The truth is dumb: when each commit was made, by the app that made it, and which of them a stock reader of the replica
sees. It is behind by the age of the oldest commit that it does not see. Each look takes the time first, then what
walcast says, then what the reader sees, so that the replica can only look fresher than it was when walcast spoke.

What is held: **what walcast says, plus SLACK_S, is never less than the truth.** SLACK_S follows from how lag is told: a
replica that was level at a moment (it had every commit made until then) says so for QUIET_S after that moment, which
is a heartbeat's interval and the bound of a look at the WAL; then it says the time since. The rest is for the clocks,
which are read one after the other.

* `Replica.lag().ms`: as it is;
* the middleware's `max_lag_s`: a read that the replica answers and does not call stale is of a state not older;
* `/healthz` of the follower: 200 says that the replica is not older than STALE_S.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from walcast import statusfile
from walcast.errors import Unavailable
from walcast.replica import Replica
from walcast.statusfile import read_status
from walcast.web.options import Options
from walcast.web.routing import Asked, Local, route
from walcast_node.failover import member_status

CLOCKS_S = 0.05
EVERY_S = 0.02
HEALTH_EVERY_S = 0.2
HEALTH_S = 1.0
MAX_LAG_S = (0.5, 2.0, 10.0)
READ = Asked(writes=False, private=False, forwarded=False, upgrade=False, token=None)


def slack_s() -> float:
    """As the module is set: tests may have all times shorter."""
    return statusfile.QUIET_S + CLOCKS_S


class Ledger(Protocol):
    """When commits were made. Numbers of one app go up; `seen`: the highest of each that a reader saw."""

    def missing_since(self, seen: Mapping[str, int]) -> float | None:
        """When the oldest commit was made that is not among those; None: all are. Of the monotonic clock."""


class App:
    """An app in this process, which commits rows of `commits (app, n)` to `path`, one every `pause_s`, and is their
    ledger. What fails is tried again: a database may be locked for a while."""

    def __init__(self, path: Path, pause_s: float = 0.01) -> None:
        self._path, self._pause_s = path, pause_s
        self._at: list[float] = []
        self._stop = threading.Event()
        self._paused = threading.Event()
        self._thread = threading.Thread(target=self._run, name="app")

    @staticmethod
    def create(path: Path) -> None:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE commits (app TEXT, n INTEGER, PRIMARY KEY (app, n)) WITHOUT ROWID")
        db.close()

    def __enter__(self) -> App:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def count(self) -> int:
        return len(self._at)

    def _run(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=0.1)
        db.execute("PRAGMA synchronous = NORMAL")
        while not self._stop.wait(self._pause_s):
            try:
                db.execute("INSERT INTO commits VALUES ('', ?)", (len(self._at),))
            except sqlite3.OperationalError:
                continue
            self._at.append(time.monotonic())
        db.close()

    def missing_since(self, seen: Mapping[str, int]) -> float | None:
        first = seen.get("", -1) + 1
        return self._at[first] if first < len(self._at) else None


class AckedRows:
    """The ledgers of `failover_app`: of rows that were acknowledged, since only these are never lost, the commits."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._read_bytes = dict.fromkeys(files, 0)
        self._committed: dict[tuple[str, int], float] = {}
        self._acked: dict[str, list[int]] = {app: [] for app in files}
        self._lock = threading.Lock()

    @property
    def query(self) -> str:
        return " UNION ALL ".join(
            f"SELECT '{app}', (SELECT max(n) FROM rows WHERE app = '{app}')" for app in self._files
        )

    def missing_since(self, seen: Mapping[str, int]) -> float | None:
        with self._lock:
            for app in self._files:
                self._read(app)
            missing = []
            for app, rows in self._acked.items():
                newest = seen.get(app)
                at = bisect_right(rows, -1 if newest is None else newest)
                if at < len(rows):
                    missing.append(self._committed[app, rows[at]])
            return min(missing, default=None)

    def _read(self, app: str) -> None:
        if not self._files[app].exists():
            return
        with self._files[app].open("rb") as file:
            file.seek(self._read_bytes[app])
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes[app] += len(whole)
        for line in whole.decode().splitlines():
            at, kind, *rest = line.split()
            if kind == "commit":
                self._committed[app, int(rest[0])] = float(at)
            elif kind == "ack":
                self._acked[app].extend(map(int, rest[1:]))


@dataclass
class Watched:
    """What was seen of one replica. `stalest_s`: how far behind it was at most; `fresher_s`: by how much what walcast
    said was below the truth at most, with who said it; `wrong`: where that was more than the slack."""

    path: Path
    http: str = ""
    looks: int = 0
    stalest_s: float = 0.0
    fresher_s: tuple[float, str] = (0.0, "")
    said_s: float = math.inf
    wrong: list[str] = field(default_factory=list)


class Oracle:
    """Looks at replicas, each from a thread of its own, every `every_s`, from `watching` to its end."""

    def __init__(
        self, ledger: Ledger, query: str = "SELECT app, max(n) FROM commits GROUP BY app", every_s: float = EVERY_S
    ) -> None:
        self._ledger = ledger
        self._query = query
        self._every_s = every_s
        self._stop = threading.Event()
        self.watched: list[Watched] = []

    def add(self, replica: Path, http: str = "") -> Watched:
        """`http`: where its follower answers /healthz."""
        watched = Watched(replica, http)
        self.watched.append(watched)
        return watched

    @contextmanager
    def watching(self) -> Iterator[Oracle]:
        threads = [threading.Thread(target=self._run, args=(w,), name="oracle") for w in self.watched]
        threads += [threading.Thread(target=self._ask, args=(w,), name="health") for w in self.watched if w.http]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def check(self) -> None:
        """Nothing that walcast said was fresher than the truth, by more than the slack."""
        for watched in self.watched:
            print(
                f"{watched.path}: {watched.looks} looks, up to {watched.stalest_s:.2f} s behind, said up to "
                f"{watched.fresher_s[0]:.2f} s too fresh ({watched.fresher_s[1]}), slack {slack_s():.2f} s"
            )
            assert watched.looks > 10, watched
            assert not watched.wrong, f"{len(watched.wrong)} looks, the first: {watched.wrong[:5]}"

    def _run(self, watched: Watched) -> None:
        while not self._stop.wait(self._every_s):
            self._look(watched)

    def _look(self, watched: Watched) -> None:
        now = time.monotonic()
        try:
            lag_s = Replica(watched.path).lag().ms / 1000
            status, now_ns = read_status(watched.path), time.time_ns()
        except Unavailable:
            return  # nothing is said
        watched.said_s = lag_s
        routes = [
            (most_s, route(READ, status, now_ns, Options(max_lag_s=most_s, on_lag="stale"))) for most_s in MAX_LAG_S
        ]
        true_s = self._behind_s(watched, now)
        if true_s is None:
            return
        watched.looks += 1
        watched.stalest_s = max(watched.stalest_s, true_s)
        self._compare(watched, true_s, lag_s, f"lag() of a replica that is {status.state}")
        for most_s, decided in routes:
            if isinstance(decided, Local) and decided.stale_s is None and not decided.primary:
                self._compare(watched, true_s, most_s, f"max_lag_s={most_s}")

    def _ask(self, watched: Watched) -> None:
        while not self._stop.wait(HEALTH_EVERY_S):
            now = time.monotonic()
            try:
                with urllib.request.urlopen(f"http://{watched.http}/healthz", timeout=HEALTH_S) as answer:
                    healthy = answer.status == 200
            except (urllib.error.HTTPError, OSError):
                healthy = False
            true_s = self._behind_s(watched, now)
            if healthy and true_s is not None:
                self._compare(watched, true_s, member_status.STALE_S, "/healthz")

    def _compare(self, watched: Watched, true_s: float, said_s: float, who: str) -> None:
        fresher_s = true_s - said_s
        watched.fresher_s = max(watched.fresher_s, (round(fresher_s, 3), who))
        if fresher_s > slack_s():
            watched.wrong.append(f"{who} said {said_s:.3f} s, the truth is {true_s:.3f} s")

    def _behind_s(self, watched: Watched, now: float) -> float | None:
        """At `now`, or less: what is read is of later. None when it cannot be read."""
        try:
            db = sqlite3.connect(f"file://{watched.path}?mode=ro", uri=True, isolation_level=None, timeout=0.1)
        except sqlite3.OperationalError:
            return None
        try:
            seen = dict(db.execute(self._query).fetchall())
        except sqlite3.OperationalError:
            return None
        finally:
            db.close()
        since = self._ledger.missing_since(seen)
        return 0.0 if since is None else max(0.0, now - since)
