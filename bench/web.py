"""An app at the edge: what walcast costs its pages, and how soon a visitor reads what he wrote.

The example's list of entries (a query, 30 entries, a template) under gunicorn with one process, asked for by a process
of its own, one page after the other. With walcast: extension and middleware at a follower. Without: the same app on a
database of its own by plain sqlite3, no middleware, no extension, and the follower stopped. In both, ten commits a
second come in meanwhile, and the primary of the other region runs on the same two cores. The two in turn, a second
each, so that a noisy machine is noisy for both.

Forwarded writes: a form is posted at the edge, the primary's app answers it, and the page that follows is read at the
edge with the token; one after the other, all processes on the one machine.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from bench.harness import ROOT, BenchError, Child, Run, say, wait_until
from bench.measure import Measure, quantile
from examples.flask_app import seeds, store
from walcast.replica import Replica

ROUNDS = 20
ROUND_S = 1.0
CONNECTIONS = 1
COMMITS_PER_S = 10
POSTS = 400
ENTRIES = 1000


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    site = Site(run)
    ratios, attached, bare = site.pages(5 if run.quick else ROUNDS)
    posted, read, at_home = site.writes(50 if run.quick else POSTS)
    both = [p + r for p, r in zip(posted, read, strict=True)]
    return [
        Measure("pages a second at the edge, of those without walcast", "x", ratios, at_least=0.95),
        Measure("pages a second with walcast", "1/s", attached),
        Measure("pages a second without", "1/s", bare),
        Measure("write posted at the edge until it was read there: p50", "ms", [quantile(both, 0.50)]),
        Measure("write posted at the edge until it was read there: p99", "ms", [quantile(both, 0.99)]),
        Measure("of that, the answer to the forwarded write: p50", "ms", [quantile(posted, 0.50)]),
        Measure("of that, the answer to the forwarded write: p99", "ms", [quantile(posted, 0.99)]),
        Measure("of that, the page with the token: p50", "ms", [quantile(read, 0.50)]),
        Measure("of that, the page with the token: p99", "ms", [quantile(read, 0.99)]),
        Measure("the same write posted at home: p50", "ms", [quantile(at_home, 0.50)]),
    ]


class Site:
    """A primary and a follower, and the app beside each."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.home, self.edge = run.folder / "home" / "app.db", run.folder / "edge" / "app.db"
        self.plain = run.folder / "plain.db"
        self.home.parent.mkdir()
        self.edge.parent.mkdir()
        _fill(self.home)
        self.ports = {name: _free_port() for name in ("home", "edge", "plain")}
        _, address = run.primary(self.home, "--app-url", f"http://127.0.0.1:{self.ports['home']}")
        self.follower = run.follower(self.edge, address)
        wait_until(lambda: Replica(self.edge).state() == "streaming", "the follower")
        with sqlite3.connect(self.home) as source, sqlite3.connect(self.plain) as target:
            source.backup(target)
        self._app("home", self.home, "attached")
        self._app("edge", self.edge, "attached")
        self._app("plain", self.plain, "bare")

    def _app(self, name: str, db: Path, factory: str) -> Child:
        env = {"FLASK_WALCAST_DATABASE": str(db), "FLASK_SECRET_KEY": "of the benchmark", "FLASK_REGION": name}
        bind = f"127.0.0.1:{self.ports[name]}"
        command = [sys.executable, "-m", "gunicorn", "--threads", str(CONNECTIONS + 1), "--keep-alive", "5"]
        command += ["--no-control-socket", "--bind", bind, f"bench.apps:{factory}()"]
        child = self.run.start(name, command, env={**_environment(), **env})
        wait_until(lambda: _answers(self.ports[name]), f"the app {name}")
        return child

    def pages(self, rounds: int) -> tuple[list[float], list[float], list[float]]:
        """Ratios, and pages a second with and without."""
        load = self.run.start("load", [sys.executable, "-m", "bench.apps"])
        if load.line() != "ready":
            raise BenchError("load: not ready")
        rates: dict[str, list[float]] = {"edge": [], "plain": []}
        for number in range(rounds + 1):
            for name in ("edge", "plain") if number % 2 else ("plain", "edge"):
                with contextlib.ExitStack() as stack:
                    stack.enter_context(_committing(self.home))
                    if name == "plain":
                        stack.enter_context(_committing(self.plain))
                        stack.enter_context(self._stopped())
                    load.say(f"http://127.0.0.1:{self.ports[name]}/ {ROUND_S} {CONNECTIONS}")
                    facts = load.json()
                if number:  # the first one warms up
                    rates[name].append(facts["requests"] / facts["seconds"])
        ratios = [a / b for a, b in zip(rates["edge"], rates["plain"], strict=True)]
        say(f"{rounds} rounds")
        return ratios, rates["edge"], rates["plain"]

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        self.follower.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.follower.signal(signal.SIGCONT)

    def writes(self, count: int) -> tuple[list[float], list[float], list[float]]:
        """ms of each post at the edge, of the page after it, and of a post at home."""
        wait_until(lambda: Replica(self.edge).state() == "streaming", "the follower")
        posted, read, at_home = [], [], []
        for number in range(count + 10):
            began = time.perf_counter()
            status, headers, _ = self._ask("edge", "POST", "/add", f"edge {number}")
            answered = time.perf_counter()
            cookie = headers.get("set-cookie", "").partition(";")[0]
            if status != 303 or not cookie:
                raise BenchError(f"the post was answered {status}")
            status, _, page = self._ask("edge", "GET", headers["location"], cookie=cookie)
            done = time.perf_counter()
            if status != 200 or f"edge {number}<".encode() not in page:
                raise BenchError(f"what was posted is not on the page ({status})")
            began_home = time.perf_counter()
            self._ask("home", "POST", "/add", f"home {number}")
            if number >= 10:
                posted.append((answered - began) * 1000)
                read.append((done - answered) * 1000)
                at_home.append((time.perf_counter() - began_home) * 1000)
        say(f"{count} posts")
        return posted, read, at_home

    def _ask(
        self, name: str, method: str, path: str, title: str = "", cookie: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=20)
        try:
            headers = {"Cookie": cookie} if cookie else {}
            body = None
            if title:
                body = urlencode({"key": title, "title": title})
                headers["Content-Type"] = "application/x-www-form-urlencoded"
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@contextlib.contextmanager
def _committing(path: Path) -> Iterator[None]:
    """An app's commits, ten a second, into a database."""
    over = threading.Event()

    def commit() -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as db:
            while not over.wait(1 / COMMITS_PER_S):
                db.execute("INSERT INTO line (text) VALUES ('a line')")

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _fill(path: Path) -> None:
    """As many entries as a reading list has after a year."""
    seeds.plant(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for number in range(ENTRIES):
            words = " ".join(f"word{(number * 7 + i) % 500}" for i in range(40))
            store.add(
                db, store.Draft(f"filled-{number}", f"Title {number}", f"Author {number % 40}", words), None, "home"
            )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False
