"""Switchovers and failovers as those see them who write: the same app on three hosts, its visitors write at each of
them all the time, and every request is written down with its answer."""

from __future__ import annotations

import http.client
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.nodes import poll, walcast
from support.replica_set import ReplicaSet, replica_set
from support.web_servers import Server, listening, served

IDS = "abc"
HOST = "127.0.0.1"  # as edges ask for it
LEASE_S = 1.0
OPTIONS = {"secret": "of all hosts", "followers": 1, "primary_wait_s": 15, "answer_s": 15}
MORE = 6  # answers at each host that are waited for before and after something happens


@dataclass(frozen=True, slots=True)
class Written:
    """A request that writes, and its answer. `status` 0: there was none."""

    name: str
    status: int
    confirmed: bool
    seconds: float


@dataclass
class Visitors:
    """Of one host each; `written` in the order of the answers."""

    servers: dict[str, Server]
    phase: str
    written: dict[str, list[Written]] = field(default_factory=lambda: {id_: [] for id_ in IDS})
    end: threading.Event = field(default_factory=threading.Event)

    def write(self, id_: str, visitor: int) -> None:
        number = 0
        while not self.end.is_set():
            number += 1
            name = f"{self.phase}-{id_}-{visitor}-{number}"
            began_s = time.monotonic()
            try:
                answer = self.servers[id_].post(f"/notes?{name}", b"note")
                status, confirmed = answer.status, answer["walcast-unconfirmed"] == ""
            except (OSError, http.client.HTTPException) as error:
                print(f"{name}: {error!r}")
                status, confirmed = 0, False
            self.written[id_].append(Written(name, status, confirmed, time.monotonic() - began_s))

    def wait(self, ids: str) -> None:
        """Until each of these hosts has accepted some more."""
        before = {id_: self.accepted(id_) for id_ in ids}
        assert poll(lambda: all(self.accepted(id_) >= before[id_] + MORE for id_ in ids))

    def accepted(self, id_: str) -> int:
        return sum(written.status == 201 for written in list(self.written[id_]))

    @property
    def all(self) -> list[Written]:
        return [written for id_ in IDS for written in self.written[id_]]


@contextmanager
def visitors(servers: dict[str, Server], ids: str, phase: str) -> Iterator[Visitors]:
    """Two of each host."""
    made = Visitors(servers, phase)
    threads = [threading.Thread(target=made.write, args=[id_, n]) for id_ in ids for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.end.set()
        for thread in threads:
            thread.join()


@dataclass
class World:
    nodes: ReplicaSet
    servers: dict[str, Server]

    def notes(self) -> Counter[str]:
        """How often each name is there, at the primary."""
        primary = self.nodes.wait_level()
        return Counter(self.servers[primary.id].get("/notes").facts["notes"])


def create(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, name TEXT)")


KINDS = ["gthread", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("uvicorn", "flask"))]


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        ports = {id_: listening() for id_ in IDS}
        urls = {id_: f"http://{HOST}:{port.getsockname()[1]}" for id_, port in ports.items()}
        flags = {id_: ["--app-url", url] for id_, url in urls.items()}
        nodes = stack.enter_context(replica_set(tmp_path, lease_s=LEASE_S, flags=flags, create=create))
        servers = {}
        for id_ in IDS:
            site = {"database": str(nodes.node(id_).db), "options": OPTIONS}
            servers[id_] = stack.enter_context(served(request.param, {HOST: site}, tmp_path, ports[id_]))
            servers[id_].host = HOST
        yield World(nodes, servers)


def test_whatever_becomes_of_the_primary_each_write_is_there_once_or_it_is_said(world: World) -> None:
    nodes = world.nodes
    with visitors(world.servers, IDS, "switched") as writing:
        writing.wait(IDS)
        said = walcast("switchover", nodes.node("a").gate, "--to", "b")
        assert said.returncode == 0, said.stderr
        writing.wait(IDS)
    switched = writing.all
    assert {written.status for written in switched} == {201}, "a planned hand-over fails no request"

    with visitors(world.servers, "ac", "killed") as writing:
        writing.wait("ac")
        nodes.node("b").kill()
        nodes.wait_primary(other_than="b")
        writing.wait("ac")
    nodes.node("b").start(ready=False)
    killed = writing.all
    print(
        Counter((written.status, written.confirmed) for written in killed), max(written.seconds for written in killed)
    )
    found = world.notes()
    assert set(found.values()) == {1}, "nothing is there twice"
    assert all(found[written.name] == 1 for written in switched), "and nothing is lost"
    for written in killed:
        assert written.status in (201, 502, 503), written
        if written.status == 201 and written.confirmed:
            assert found[written.name] == 1, written
        if written.status == 503:
            assert found[written.name] == 0, written
    assert sum(written.status != 201 for written in killed) <= 8, "those that were on their way"
