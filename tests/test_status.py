"""`walcast status`: one shape for whatever is asked and however, which `docs/status.schema.json` describes."""

from __future__ import annotations

import io
import json
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console
from support import nodes
from support.nodes import Node, poll, walcast
from support.replica_set import create_database

from walcast import wire
from walcast.errors import Unavailable
from walcast.facts import primary_facts
from walcast.remedies import FailureKind, remedy
from walcast.rpc import replication_pb2 as pb
from walcast_node.commands.status_facts import local_status, primary_status, status_of
from walcast_node.commands.status_table import table
from walcast_node.commands.status_watch import looks

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "status.schema.json").read_text())


def checked(facts: Any) -> dict[str, Any]:
    """What the schema describes, as JSON has it."""
    plain: dict[str, Any] = json.loads(json.dumps(facts, allow_nan=False))
    jsonschema.validate(plain, SCHEMA, cls=jsonschema.Draft202012Validator)
    return plain


def commit(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as db:
        db.execute("create table if not exists more(x)")
        db.execute("insert into more values (1)")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, Node, Path, Path]]:
    """A primary with an archive and HTTP, and its follower."""
    database, replica = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(database)
    flags = [str(tmp_path / "archive"), "--http", "127.0.0.1:0"]
    with (
        nodes.primary(database, *flags) as primary,
        nodes.follower(replica, primary.address, "--id", "edge") as follower,
    ):
        follower.wait_event("streaming")
        yield primary, follower, database, replica


def test_every_status_of_running_and_of_stopped_nodes_has_one_shape(pair: tuple[Node, Node, Path, Path]) -> None:
    primary, follower, database, replica = pair
    commit(database)
    address = wire.Address.parse(primary.address)

    def level() -> Any:
        facts = primary_status(address, wire.Tls())["databases"][0]
        done = facts["followers"] and facts["followers"][0]["durable_txid"] == facts["archive"]["txid"] == facts["txid"]
        return done and facts

    nodes.barrier(primary.address)
    assert poll(lambda: walcast_barrier(primary) and level())
    http = json.loads(primary.out.read_text().splitlines()[0])["http"]
    with urllib.request.urlopen(f"http://{http}/status") as answer:
        over_http = checked(json.load(answer))
    by_path, by_address = checked(local_status(database)), checked(primary_status(address, wire.Tls()))
    printed = checked(json.loads(walcast("status", primary.address, "--json").stdout))
    following = checked(local_status(replica))
    for facts in (over_http, by_path, by_address, printed):
        [shown] = facts["databases"]
        assert (facts["role"], facts["state"], shown["state"]) == ("primary", "serving", "serving")
        assert shown["lag"] == {"transactions": 0, "bytes": 0, "ms": 0}
        assert shown["archive"]["lag"] == {"transactions": 0, "bytes": 0, "ms": 0}
        assert shown["followers"][0]["lag"]["bytes"] == 0
        assert shown["since"]
    [replicated] = following["databases"]
    assert (following["role"], following["state"], replicated["state"]) == ("follower", "streaming", "streaming")
    assert replicated["position"] == following["position"] == by_path["databases"][0]["position"]
    assert replicated["lag"]["transactions"] == replicated["lag"]["bytes"] == 0
    # The TXID that is shown is the one that flags take.
    assert walcast("wait", replica, replicated["txid_hex"], "--timeout", "5").returncode == 0

    follower.stop()
    primary.stop()
    for path, role in ((database, "primary"), (replica, "follower")):
        stopped = checked(local_status(path))
        [shown] = stopped["databases"]
        assert (stopped["role"], stopped["state"], shown["role"], shown["state"]) == (role, "stopped", role, "stopped")
        assert shown["position"] == replicated["position"]
        assert shown["since"]
        [trouble] = shown["troubles"]
        assert trouble["kind"] == "stopped"
        assert f"walcast {role} {path}" in trouble["remedy"]


def walcast_barrier(primary: Node) -> bool:
    from walcast.primary import Primary

    Primary(primary.address).barrier(followers=1, timeout=10.0)
    return True


def test_a_primary_that_was_killed_is_a_stopped_primary(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    create_database(database)
    with nodes.primary(database) as primary:
        assert poll(lambda: (tmp_path / "app.db-walcast" / "status").exists())
        primary.kill()
        facts = checked(local_status(database))
        assert (facts["role"], facts["state"]) == ("primary", "stopped")


@pytest.mark.parametrize("kind", [*FailureKind, "what a later version says"])
def test_whatever_is_wrong_has_a_remedy(kind: str) -> None:
    text = remedy(kind, path="/srv/app.db", primary="10.0.0.1:7420", url="s3://bucket/app", role="primary")
    assert text
    assert "{" not in text
    assert remedy(kind)


def reply(**facts: Any) -> pb.StatusReply:
    follower = pb.FollowerStatus(id="edge-1", state="streaming", applied_txid=0x4D2, durable_txid=0x4D1, lag_txids=1)
    database = pb.DatabaseStatus(name="app", path="/srv/app.db", role="primary", followers=[follower], **facts)
    database.position.CopyFrom(pb.Position(txid=0x4D3, checksum=7, term=2))
    database.archive.CopyFrom(pb.ArchiveStatus(url="s3://bucket/app", txid=0x4D0, error="no route", lag_ms=5))
    return pb.StatusReply(role="primary", term=2, databases=[database])


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_table_fits_its_terminal_with_every_txid_as_flags_take_it(columns: int) -> None:
    facts = primary_facts(reply(trouble="it is fenced", trouble_kind="fenced"))
    checked(facts)
    console = Console(width=columns, file=io.StringIO(), record=True)
    console.print(table(facts, columns))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= columns
    for txid in ("00000000000004d3", "00000000000004d2", "00000000000004d1", "00000000000004d0"):
        assert txid in text
    assert "it is fenced" in text
    assert "walcast promote" in " ".join(text.split())


def test_watching_outlives_what_it_watches_and_sees_it_come_back() -> None:
    answers: list[Any] = [primary_facts(reply()), Unavailable("gone"), Unavailable("gone"), primary_facts(reply())]

    def ask() -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    first, gone, still, back = islice(looks(ask, 0.0), 4)
    assert (first.error, gone.error, still.since, back.error) == ("", "gone", gone.since, "")
    assert gone.facts == first.facts
    for look in (first, gone, still, back):
        checked(look.as_json("127.0.0.1:1"))
    assert gone.as_json("x")["state"] == "unreachable"


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_watch_goes_on_without_a_terminal_and_without_anybody_who_answers(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    node = Node(["status", "127.0.0.1:1", "--watch", "--interval", "0.05", *flags], tmp_path, "watch").start()
    try:
        assert poll(lambda: node.out.read_text().count("unreachable") >= 2 or not node.running)
        assert node.running, node.err.read_text()
    finally:
        node.end()
    if flags:
        checked(json.loads(node.out.read_text().splitlines()[0]))


def test_a_status_asked_for_once_fails_where_nobody_answers() -> None:
    began_s = time.monotonic()
    with pytest.raises(Unavailable):
        status_of("127.0.0.1:1", wire.Tls())
    assert time.monotonic() - began_s < 30
