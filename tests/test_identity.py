"""A database has an identity; a replica is a replica only of the history that it has followed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.nodes import Node, follower, poll, position_of, primary, walcast

from walcast import wire
from walcast.errors import ConfigError, Unavailable
from walcast.identity import (
    NAME,
    OtherDatabase,
    forget_database_id,
    id_of_database,
    make_database_id,
    parse_database_id,
    read_database_id,
    write_database_id,
)
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.statedir import state_dir
from walcast_follower.bootstrap.overwrite_check import check_replica
from walcast_follower.subscribe.primary_client import Client


def make(path: Path, word: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES (?)", [word])
    return path


def word(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("SELECT a FROM t").fetchone()[0])


@dataclass
class Primary:
    node: Node
    path: Path

    @property
    def address(self) -> str:
        return self.node.address

    @property
    def id(self) -> str:
        found = id_of_database(self.path)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def x(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Primary]:
    path = make(tmp_path_factory.mktemp("x") / "db.sqlite3", "X")
    with primary(path) as node:
        yield Primary(node, path)


@pytest.fixture(scope="module")
def y(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Primary]:
    """Another database, of the same name."""
    path = make(tmp_path_factory.mktemp("y") / "db.sqlite3", "Y")
    with primary(path) as node:
        yield Primary(node, path)


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "db.sqlite3"


def follow(edge: Path, of: Primary, *flags: str, env: dict[str, str] | None = None) -> None:
    """Until it is level; then it ends."""
    with follower(edge, of.address, *flags, env=env) as node:
        assert poll(lambda: position_of(edge).txid and word(edge) == word(of.path))
        assert node.stop() == 0


def refused(edge: Path, of: Primary, *flags: str) -> str:
    """What a follower says that does not begin, and changes nothing."""
    before = word(edge)
    with follower(edge, of.address, *flags, wait=False) as node:
        assert node.wait() == 1
        said = node.err.read_text().splitlines()[-1]
    assert word(edge) == before
    return said


# The id itself


@pytest.mark.parametrize(
    "text", ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 31 + "\n", "\u0660" * 32, "0" * 32 + "\n"]
)
def test_anything_but_32_lowercase_hexadecimal_digits_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="not a database id"):
        parse_database_id(text)


def test_an_id_is_read_as_it_was_written_and_no_two_are_alike(tmp_path: Path) -> None:
    one, two = make_database_id(), make_database_id()
    assert one != two
    assert read_database_id(tmp_path / "none") is None
    write_database_id(tmp_path / "state", one)
    assert read_database_id(tmp_path / "state") == parse_database_id(one) == one
    forget_database_id(tmp_path / "state")
    assert read_database_id(tmp_path / "state") is None


@pytest.mark.parametrize("data", [b"", b"\n", b"0" * 31, b"0" * 4096, b"\xff" * 32])
def test_a_damaged_id_is_an_error_and_not_taken_for_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(ConfigError):
        read_database_id(tmp_path)


def test_an_id_without_a_database_says_nothing(tmp_path: Path) -> None:
    write_database_id(state_dir(tmp_path / "app.db"), make_database_id())
    assert id_of_database(tmp_path / "app.db") is None
    (tmp_path / "app.db").touch()
    assert id_of_database(tmp_path / "app.db") is None


# A follower and its primary


def test_a_replica_has_its_primarys_id_and_status_says_so(x: Primary, edge: Path) -> None:
    with follower(edge, x.address):
        assert poll(lambda: id_of_database(edge) == x.id)
        for what in (x.address, edge):
            facts = json.loads(walcast("status", what, "--json").stdout)
            assert [d["database_id"] for d in facts.get("databases", [facts])] == [x.id]


def test_a_replica_is_not_overwritten_by_another_database_unless_it_is_to_be_replaced(
    x: Primary, y: Primary, edge: Path
) -> None:
    follow(edge, x)
    said = refused(edge, y)
    assert x.id in said
    assert y.id in said
    assert y.address in said
    assert "--replace" in said
    follow(edge, y, "--replace")
    assert id_of_database(edge) == y.id
    assert list((state_dir(edge) / "discarded").iterdir()), "what was followed before is kept"
    follow(edge, y)
    assert x.id in refused(edge, x)


def test_a_backup_does_not_make_a_replica_of_a_database(x: Primary, edge: Path, tmp_path: Path) -> None:
    make(edge, "production")
    assert walcast("snapshot", edge, tmp_path / "archive").returncode == 0
    mine = id_of_database(edge)
    assert mine is not None
    assert mine in refused(edge, x)


def test_a_verification_that_fails_leaves_nothing_behind(x: Primary, edge: Path) -> None:
    make(edge, "production")
    assert walcast("verify", edge, "--primary", x.address).returncode == 1
    assert not state_dir(edge).exists()
    refused(edge, x)


def test_a_log_makes_no_replica_of_a_database(edge: Path) -> None:
    make(edge, "production")
    (state_dir(edge) / "log").mkdir(parents=True)
    (state_dir(edge) / "positions").touch()
    with pytest.raises(ConfigError, match="no replica"):
        check_replica(edge)


def test_what_a_replica_of_an_older_walcast_has_followed_makes_it_no_replica_of_another_database(
    x: Primary, y: Primary, edge: Path
) -> None:
    follow(edge, y)
    forget_database_id(state_dir(edge))
    (state_dir(edge) / "log").mkdir()
    assert "no replica" in refused(edge, x)


def test_a_replica_of_an_older_walcast_is_known_by_its_position(x: Primary, edge: Path) -> None:
    follow(edge, x)
    forget_database_id(state_dir(edge))
    follow(edge, x)
    assert id_of_database(edge) == x.id


@pytest.mark.slow
def test_a_database_that_was_edited_is_no_replica_without_an_id(x: Primary, edge: Path) -> None:
    follow(edge, x)
    forget_database_id(state_dir(edge))
    with closing(sqlite3.connect(edge, isolation_level=None)) as db:
        db.execute("UPDATE t SET a = 'mine'")
    assert "no replica" in refused(edge, x)


@pytest.mark.slow
def test_a_damaged_id_ends_a_follower_before_anything_is_changed(x: Primary, edge: Path) -> None:
    follow(edge, x)
    (state_dir(edge) / NAME).write_text("gibberish\n")
    assert "gibberish" in refused(edge, x)
    assert (state_dir(edge) / NAME).read_text() == "gibberish\n"


def test_a_promoted_node_goes_on_with_the_id_and_makes_snapshots(x: Primary, edge: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "p" / "db.sqlite3", "set")
    with primary(path) as node, follower(edge, node.address, "--listen", "127.0.0.1:0"):
        assert poll(lambda: position_of(edge).txid)
        assert walcast("promote", edge).returncode == 0
        facts = json.loads(walcast("status", edge, "--json").stdout)
        assert facts["role"] == "primary"
        assert facts["databases"][0]["database_id"] == id_of_database(path) == id_of_database(edge)
        done = walcast("snapshot", edge, tmp_path / "archive")
        assert done.returncode == 0, done.stderr
        assert walcast("snapshot", path, tmp_path / "archive").returncode == 1, "that one follows now"
    assert json.loads((tmp_path / "archive" / "walcast-database").read_bytes())["id"] == id_of_database(edge)


# Killed on the way


def killed(edge: Path, of: Primary, dies: str, *flags: str) -> None:
    with follower(
        edge, of.address, *flags, script="identity_killed_follower.py", env={"DIES": dies}, wait=False
    ) as node:
        assert node.wait() == 9


@pytest.mark.slow
def test_killed_before_the_commit_it_is_the_old_content_and_a_copy_of_nothing(
    x: Primary, y: Primary, edge: Path
) -> None:
    follow(edge, x)
    killed(edge, y, "forgotten", "--replace")
    assert (word(edge), id_of_database(edge)) == ("X", None)
    refused(edge, y)
    follow(edge, x)
    assert id_of_database(edge) == x.id


def test_killed_after_the_commit_it_is_the_new_content_and_known_by_its_position(
    x: Primary, y: Primary, edge: Path
) -> None:
    follow(edge, x)
    killed(edge, y, "committed", "--replace")
    assert (word(edge), id_of_database(edge)) == ("Y", None)
    follow(edge, y)
    assert id_of_database(edge) == y.id


def test_killed_between_the_id_and_the_data_of_a_bootstrap_there_is_nothing(x: Primary, y: Primary, edge: Path) -> None:
    killed(edge, x, "named")
    assert not edge.exists()
    assert read_database_id(state_dir(edge)) == x.id
    follow(edge, y)
    assert id_of_database(edge) == y.id


# Both sides compare


def asked(address: str, message: Any) -> Any:
    """The first answer to a Hello or a CopyHello."""
    with grpc.insecure_channel(address, options=wire.OPTIONS) as channel:
        stub = rpc.ReplicationStub(channel)
        call = stub.Copy if isinstance(message, pb.CopyRequest) else stub.Stream
        return next(call(iter([message]), timeout=20.0))


@pytest.mark.parametrize("theirs", ["f" * 32, "no id", "F" * 32])
def test_a_primary_refuses_whoever_says_that_it_is_of_another_database(x: Primary, theirs: str) -> None:
    hello = pb.Hello(protocol=wire.PROTOCOL_VERSION, database_is_guess=True, database_id=theirs)
    copy = pb.CopyHello(protocol=wire.PROTOCOL_VERSION, database_is_guess=True, database_id=theirs)
    for message in (pb.FollowerMessage(hello=hello), pb.CopyRequest(hello=copy)):
        assert asked(x.address, message).refusal.kind == pb.REFUSAL_KIND_OTHER_DATABASE


def test_a_primary_names_its_database_to_whoever_is_of_none_yet(x: Primary) -> None:
    copy = pb.CopyHello(protocol=wire.PROTOCOL_VERSION, database_is_guess=True)
    start = asked(x.address, pb.CopyRequest(hello=copy)).start
    assert start.database_id == x.id
    hello = pb.Hello(protocol=wire.PROTOCOL_VERSION, database_is_guess=True, position=start.position, observer=True)
    assert asked(x.address, pb.FollowerMessage(hello=hello)).welcome.database_id == x.id


class Credulous(rpc.ReplicationServicer):
    """A primary that compares nothing."""

    def __init__(self, says: str) -> None:
        self._says = says

    async def Stream(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.PrimaryMessage]:  # noqa: N802
        await anext(aiter(request_iterator))  # a call that ends while the hello is on its way is another error
        welcome = pb.Welcome(protocol=wire.PROTOCOL_VERSION, page_size=4096, database_id=self._says)
        yield pb.PrimaryMessage(welcome=welcome)

    async def Copy(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.CopyReply]:  # noqa: N802
        async for _ in request_iterator:
            pass
        at = pb.Position(txid=1, checksum=1 << 63)
        yield pb.CopyReply(start=pb.CopyStart(position=at, page_size=4096, commit_pages=1, database_id=self._says))


@asynccontextmanager
async def client_of(servicer: Any, mine: str) -> AsyncIterator[Client]:
    server = grpc.aio.server(options=wire.OPTIONS)
    rpc.add_ReplicationServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = Client(wire.Address("127.0.0.1", port), wire.Tls(), database="app", follower_id="f")
    client.database_id = mine
    try:
        yield client
    finally:
        await client.close()
        await server.stop(None)


@pytest.mark.parametrize("by", ["stream", "copy"])
@pytest.mark.parametrize(
    ("says", "mine", "expected"),
    [
        ("f" * 32, "0" * 32, OtherDatabase),
        ("no id", "0" * 32, Unavailable),
        ("no id", "", Unavailable),
        ("f" * 32, "", None),
        ("", "0" * 32, None),  # an older walcast
        ("f" * 32, "f" * 32, None),
    ],
)
def test_a_follower_compares_also_where_the_primary_does_not(
    by: str, says: str, mine: str, expected: type[Exception] | None
) -> None:
    async def ask() -> None:
        async with client_of(Credulous(says), mine) as client:
            opened = client.stream(Position(), 0) if by == "stream" else client.copy(0, None)
            async with opened:  # type: ignore[attr-defined]
                pass

    with nullcontext() if expected is None else pytest.raises(expected):
        asyncio.run(ask())
