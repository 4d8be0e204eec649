"""The whole of it: an app on the primary's host and the same one beside a follower, with real walcast processes, under
gunicorn and under uvicorn."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.nodes import Node, follower, poll, primary, wait_level
from support.web_servers import PATIENCE_S, Answer, Server, listening, served

SECRET = "of all hosts"
HOME = "127.0.0.1"  # the name under which an edge asks for it
SHORT_S = 0.3
SOON_S = 5.0


@dataclass
class Nodes:
    """Both nodes; `port` is where the app of the primary's host answers."""

    primary: Node
    follower: Node
    db: Path
    replica: Path
    port: Any

    @property
    def number(self) -> int:
        number: int = self.port.getsockname()[1]
        return number


def create(db: Path) -> None:
    with closing(sqlite3.connect(db)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    db, replica = folder / "home" / "app.db", folder / "edge" / "app.db"
    db.parent.mkdir()
    create(db)
    with ExitStack() as stack, listening() as port:
        node = stack.enter_context(primary(db, "--app-url", f"http://127.0.0.1:{port.getsockname()[1]}"))
        other = stack.enter_context(follower(replica, node.address))
        wait_level(node.address, replica)
        yield Nodes(node, other, db, replica, port)


@dataclass
class Site:
    """One app on one server."""

    server: Server
    host: str

    def read(self, answer: Answer | None = None, path: str = "/notes", *, header: bool = False) -> Answer:
        """As a browser does that was given this answer, or a program."""
        if answer is None:
            return self.server.get(path, host=self.host)
        sent = {"Walcast_Token": answer["walcast-token"]} if header else {"Cookie": answer.cookie}
        return self.server.get(path, host=self.host, **sent)

    def add(self, name: str, **headers: str) -> Answer:
        return self.server.post(f"/notes?{name}", host=self.host, **headers)


@dataclass
class World:
    home: Site
    edge: Server
    nodes: Nodes
    name: str

    def at(self, host: str) -> Site:
        return Site(self.edge, host)


MIXED = ("gthread", "uvicorn")  # at home, at the edge
OTHERS = [(kind, kind) for kind in ("gthread", "uvicorn", "gevent")]


@pytest.fixture(
    scope="module", params=[MIXED, *(pytest.param(both, marks=pytest.mark.slow) for both in OTHERS)], ids="-".join
)
def world(request: pytest.FixtureRequest, nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """At the edge: `edge`; `sure` writes where a follower must have it; `refuses` and `short` do not wait for long;
    `monotonic` gives every reader a token."""
    folder = tmp_path_factory.mktemp("-".join(request.param))
    db, replica = str(nodes.db), str(nodes.replica)
    usual = {"secret": SECRET, "read_wait_s": PATIENCE_S, "private": ["/private"], "primary_wait_s": 0.3}
    short = usual | {"read_wait_s": SHORT_S}
    sure = usual | {"followers": 1, "barrier_s": SHORT_S}
    home = {HOME: {"database": db, "options": usual}, "localhost": {"database": db, "options": sure}}
    there = {"primary_url": f"http://localhost:{nodes.number}"}
    edge = {
        "edge": {"database": replica, "options": usual},
        "sure": {"database": replica, "options": usual | there},
        "short": {"database": replica, "options": short},
        "refuses": {"database": replica, "options": short | {"on_stale": "unavailable"}},
        "monotonic": {"database": replica, "options": usual | {"monotonic_reads": True}},
    }
    with (
        served(request.param[0], home, folder, nodes.port.dup()) as one,
        served(request.param[1], edge, folder) as two,
    ):
        yield World(Site(one, HOME), two, nodes, "-".join(request.param))


def region(answer: Answer) -> str:
    assert answer.status < 300, answer
    found: str = answer.facts["region"]
    return found


@pytest.mark.parametrize("header", [False, True])
def test_who_wrote_at_an_edge_reads_it_there(world: World, header: bool) -> None:
    edge = world.at("edge")
    for number in range(20):
        name = f"{world.name}-{header}-{number}"
        added = edge.add(name)
        assert (added.status, region(added)) == (201, HOME)
        read = edge.read(added, header=header)
        assert region(read) == "edge"
        assert name in read.facts["notes"]
        assert read.cookie == ""


def test_also_many_at_once(world: World) -> None:
    edge = world.at("edge")

    def visit(visitor: int) -> None:
        for number in range(5):
            name = f"{world.name}-many-{visitor}-{number}"
            read = edge.read(edge.add(name))
            assert name in read.facts["notes"]
            assert region(read) == "edge"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(8)))


def test_who_wrote_at_home_reads_it_at_an_edge(world: World) -> None:
    name = f"{world.name}-home"
    added = world.home.add(name)
    assert region(added) == HOME
    assert name in world.at("edge").read(added).facts["notes"]


def test_the_cookie_is_set_by_writes_alone(world: World) -> None:
    for site in (world.home, world.at("edge")):
        assert site.read().cookie == ""
        assert site.add(f"{world.name}-cookie-{site.host}").cookie.count(".") == 1, "signed"
        assert site.server.post("/private", host=site.host).cookie == ""


def test_a_get_that_writes_is_answered_at_home(world: World) -> None:
    edge = world.at("edge")
    for site in (edge, world.home):
        name = f"{world.name}-visit-{site.host}"
        visited = site.read(path=f"/visit?{name}")
        assert (visited.status, region(visited)) == (201, HOME)
        assert "never" not in str(visited.headers)
        assert name in edge.read(visited).facts["notes"]


def test_a_reader_who_changes_places_does_not_go_back(world: World) -> None:
    monotonic = world.at("monotonic")
    read = monotonic.read()
    assert (region(read), read["cache-control"]) == ("monotonic", "private")
    assert read.cookie
    assert monotonic.read(read).cookie >= read.cookie


def test_an_error_of_the_app_is_passed_on(world: World) -> None:
    edge = world.at("edge")
    assert edge.add(f"{world.name}-twice").status == 201
    assert edge.add(f"{world.name}-twice").status == 500
    assert region(edge.read()) == "edge"


def test_a_write_may_wait_for_a_follower(world: World) -> None:
    added = world.at("sure").add(f"{world.name}-sure")
    assert region(added) == "localhost"
    assert added["walcast-unconfirmed"] == ""


def test_while_a_follower_stands_still(world: World) -> None:
    """Writes go on, and say what they do not have; nobody is shown a state before his own write, nor waits for long."""
    nodes, kind = world.nodes, world.name
    nodes.follower.signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        added = world.at("sure").add(f"{kind}-still")
        assert (added.status, added["walcast-unconfirmed"]) == (201, "0/1")
        assert time.monotonic() - began_s < SHORT_S + SOON_S

        began_s = time.monotonic()
        read = world.at("short").read(added)
        assert region(read) == HOME
        assert f"{kind}-still" in read.facts["notes"]
        assert read.cookie
        refused = world.at("refuses").read(added)
        assert (refused.status, refused["retry-after"]) == (503, "1")
        assert time.monotonic() - began_s < 2 * SHORT_S + SOON_S
        assert region(world.at("refuses").read()) == "refuses", "who wrote nothing is not concerned"
    finally:
        nodes.follower.signal(signal.SIGCONT)
    read = world.at("edge").read(added)
    assert region(read) == "edge"
    assert f"{kind}-still" in read.facts["notes"]


@pytest.mark.parametrize("world", [MIXED], indirect=True)
def test_without_a_primary_reads_go_on_and_nothing_is_written(world: World) -> None:
    nodes, kind = world.nodes, world.name
    known = world.at("edge").add(f"{kind}-before")
    assert f"{kind}-before" in world.at("edge").read(known).facts["notes"]
    assert nodes.primary.stop() == 0
    try:
        assert f"{kind}-before" in world.at("edge").read(known).facts["notes"]
        assert region(world.home.read()) == HOME
        refused = world.at("edge").add(f"{kind}-during")
        assert (refused.status, refused["retry-after"]) == (503, "1")
    finally:
        nodes.primary.start()
        nodes.primary.ready()
    assert poll(lambda: world.home.add(f"{kind}-after").status != 503, PATIENCE_S)
    assert f"{kind}-during" not in world.home.read().facts["notes"]
    wait_level(nodes.primary.address, nodes.replica)


def test_a_host_whose_primary_stopped_does_not_ask_its_own_app(tmp_path: Path) -> None:
    """The one worker of its server would wait for itself."""
    create(tmp_path / "app.db")
    port = listening()
    site = {"database": str(tmp_path / "app.db"), "options": {"answer_s": 1, "primary_wait_s": 0.2}}
    url = f"http://{HOME}:{port.getsockname()[1]}"
    with (
        primary(tmp_path / "app.db", "--app-url", url) as node,
        served("sync", {HOME: site}, tmp_path, port) as home,
    ):
        assert home.post("/notes?before", host=HOME).status == 201
        node.stop()
        assert home.post("/notes?after", host=HOME).status == 503
