"""`walcast.Primary` of a path: the process that serves a database on this host, asked by the socket beside it."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from support.nodes import LOOPBACK, PATIENCE_S, Node

import walcast
from walcast import local
from walcast.statedir import state_dir

ROOT = Path(__file__).parent.parent


def make_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Node]:
    """Serves app.db as a member of a replica set would, and its follower beside it."""
    make_database(folder / "app.db")
    node = Node(["primary", str(folder / "app.db"), "--listen", LOOPBACK, "--json"], folder, "primary")
    node.start()
    try:
        node.address = node.ready()["listen"]
        yield node
    finally:
        node.end()


@pytest.fixture(scope="module")
def replica(folder: Path, node: Node) -> Iterator[walcast.Replica]:
    path = folder / "edge" / "app.db"
    path.parent.mkdir()
    follower = Node(["follower", str(path), "--primary", node.address, "--listen", LOOPBACK, "--json"], folder, "edge")
    follower.start()
    try:
        follower.ready()
        yield walcast.Replica(path)
    finally:
        follower.end()


@pytest.fixture
def app(folder: Path, node: Node) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "app.db", isolation_level=None)) as db:
        yield db


@pytest.fixture
def primary(folder: Path, node: Node) -> walcast.Primary:
    return walcast.Primary(folder / "app.db")


def test_a_barrier_covers_every_commit_made_before_it(primary: walcast.Primary, app: sqlite3.Connection) -> None:
    last = primary.barrier()
    for x in range(50):
        app.execute("INSERT INTO t VALUES (?)", [x])
        token = primary.barrier()
        assert token > last
        last = token
    assert primary.barrier() == last
    (database,) = primary.status()["databases"]
    assert (database["txid"], database["term"]) == (last.txid, last.term)


def test_it_gives_the_token_that_grpc_gives(primary: walcast.Primary, node: Node, app: sqlite3.Connection) -> None:
    app.execute("INSERT INTO t VALUES (1)")
    with walcast.Primary(node.address) as other:
        assert primary.barrier() == other.barrier()


def test_a_reader_finds_its_write_on_a_replica(
    primary: walcast.Primary, replica: walcast.Replica, app: sqlite3.Connection
) -> None:
    for x in range(1000, 1020):
        app.execute("INSERT INTO t VALUES (?)", [x])
        replica.wait_for(primary.barrier(), timeout=PATIENCE_S)
        with closing(replica.connect()) as db:
            assert db.execute("SELECT max(x) FROM t").fetchone() == (x,)
        app.execute("INSERT INTO t VALUES (?)", [-x])
        replica.wait_for(primary.barrier(followers=1, timeout=PATIENCE_S), timeout=0)


def test_too_few_followers_keep_the_token(
    primary: walcast.Primary, replica: walcast.Replica, app: sqlite3.Connection
) -> None:
    app.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(walcast.NotEnoughFollowers, match="of 3 followers") as caught:
        primary.barrier(followers=3, timeout=0.1)
    assert caught.value.wanted == 3
    assert caught.value.applied < 3
    assert caught.value.token == primary.barrier()


def test_a_follower_is_not_the_primary_and_says_where_it_is(replica: walcast.Replica, node: Node) -> None:
    with pytest.raises(walcast.NotPrimary, match="this node is not the primary") as caught:
        walcast.Primary(replica.path).barrier()
    assert caught.value.primary == node.address
    assert isinstance(caught.value, walcast.Unavailable)
    assert walcast.Primary(replica.path).status()["state"] == "streaming"


def test_nobody_there_is_one_clear_line(tmp_path: Path) -> None:
    make_database(tmp_path / "app.db")
    with pytest.raises(walcast.Unavailable, match="no walcast process runs"):
        walcast.Primary(tmp_path / "app.db").barrier()


def test_a_string_with_a_slash_is_a_path(folder: Path, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert walcast.Primary("./app.db").barrier() == walcast.Primary(Path("app.db")).barrier()


def test_many_threads_ask_at_once(primary: walcast.Primary, app: sqlite3.Connection) -> None:
    app.execute("INSERT INTO t VALUES (1)")
    with ThreadPoolExecutor(64) as pool:
        tokens = set(pool.map(lambda _: primary.barrier(), range(300)))
    assert tokens == {primary.barrier()}


def test_who_finds_no_room_asks_again(tmp_path: Path) -> None:
    """To connect to a Unix socket whose queue is full fails at once, however much time there is."""
    path = tmp_path / "app.db"
    make_database(path)
    state_dir(path).mkdir()
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        server = stack.enter_context(local.listen(path))
        server.listen(0)
        server.settimeout(PATIENCE_S)
        full = False
        while not full:
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            try:
                with local._short_path(path) as short:
                    filler.connect(short)
            except BlockingIOError:
                full = True
        asking = pool.submit(walcast.Primary(path).barrier, timeout=PATIENCE_S)
        assert not asking.done()
        answered = None
        while answered is None:
            taken = stack.enter_context(server.accept()[0])
            taken.settimeout(0.05)
            with suppress(TimeoutError):
                answered = taken.recv(1000)
        assert json.loads(answered) == {"want": "barrier", "followers": 0, "level": "durable", "within_s": 30.0}
        taken.sendall(b'{"term": 3, "position": "00000000000000ff/8000000000000000", "followers": 0}\n')
        assert asking.result(PATIENCE_S) == "3-ff"


def test_what_is_no_answer_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    make_database(path)
    state_dir(path).mkdir()
    with local.listen(path) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(PATIENCE_S)
        for answer in (b'{"term": "x", "position": 5}\n', b"[]\n", b"no\n", b'{"te', b""):
            asking = pool.submit(walcast.Primary(path).barrier)
            with server.accept()[0] as taken:
                taken.settimeout(PATIENCE_S)
                taken.recv(1000)
                taken.sendall(answer)
            with pytest.raises(walcast.Unavailable):
                asking.result(PATIENCE_S)


def test_a_fork_asks_for_itself(primary: walcast.Primary, folder: Path) -> None:
    code = """
import os, sys, walcast
primary = walcast.Primary(sys.argv[1])
tokens = [primary.barrier()]
pid = os.fork()
tokens.append(primary.barrier())
os.write(1, b"%d\\n" % len(set(tokens)))
heavy = {"grpc", "google", "numpy", "apsw", "asyncio"} & set(sys.modules)
assert not heavy, heavy
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "app.db")], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "1\n1\n"), done.stderr


def test_a_database_of_a_configuration_file_is_asked_by_its_path_or_a_link_to_it(tmp_path: Path) -> None:
    for name in ("one.db", "two.db"):
        make_database(tmp_path / name)
    config = tmp_path / "walcast.yml"
    config.write_text(f"dbs: [{{path: {tmp_path}/one.db}}, {{path: {tmp_path}/two.db}}]\n")
    node = Node(["primary", "--config", str(config), "--listen", LOOPBACK, "--json"], tmp_path, "primary").start()
    try:
        node.ready()
        (tmp_path / "link.db").symlink_to("two.db")
        with closing(sqlite3.connect(tmp_path / "two.db", isolation_level=None)) as db:
            db.execute("INSERT INTO t VALUES (1)")
            one, two = (walcast.Primary(tmp_path / name).barrier() for name in ("one.db", "two.db"))
        assert two > one
        assert walcast.Primary(tmp_path / "link.db").barrier() == two
    finally:
        node.end()
