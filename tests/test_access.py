"""Nobody gets in without a role: real processes, another user of the machine, and calls that change roles."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.nodes import ENVIRONMENT, TESTS, Node, barrier, poll, walcast

from walcast.access.credentials import AUTHORIZATION
from walcast.access.tokens import bearer, new_token, token_line
from walcast.facts import primary_facts
from walcast.primary import Primary
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.statedir import state_dir
from walcast.terms import FOLLOWER, Standing, read_standing, write_standing
from walcast.token import NotEnoughFollowers

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
CALL_S = 10.0


def create(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
    return path


def write(path: Path) -> None:
    """Fails when writers are held."""
    with closing(sqlite3.connect(path, timeout=2.0)) as db, db:
        db.execute("INSERT INTO t VALUES (1)")


@contextmanager
def primary_of(folder: Path, *more: str, config: str = "") -> Iterator[Node]:
    folder.mkdir(exist_ok=True)
    db = create(folder / "app.db")
    arguments = ["primary", str(db), "--listen", "127.0.0.1:0", *more]
    if config:
        file = folder / "walcast.yml"
        file.write_text(f"dbs:\n  - path: {db}\n{config}")
        arguments = ["primary", "--config", str(file), "--listen", "127.0.0.1:0", *more]
    node = Node([*arguments, "--json", "--log-format", "json"], folder, "primary").start()
    try:
        node.address = node.ready()["listen"]
        yield node
    finally:
        node.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with primary_of(tmp_path_factory.mktemp("access")) as node:
        yield node


def step_down(node: Node, term: int, primary: str) -> pb.StepDownReply:
    with grpc.insecure_channel(node.address) as channel:
        request = pb.StepDownRequest(database="app", term=term, primary=primary)
        reply: pb.StepDownReply = rpc.ReplicationStub(channel).StepDown(request, timeout=CALL_S)
        return reply


def is_primary_still(node: Node) -> bool:
    """It takes writes, and says that it is the primary of its first term."""
    db = node.directory / "app.db"
    write(db)
    standing = read_standing(state_dir(db))
    return node.running and (standing is None or (standing.role, standing.term) == ("primary", 1))


# Another user of the machine


@as_root
def test_another_user_of_the_machine_gets_nothing_but_the_health(shared: Node) -> None:
    script = str(TESTS / "support" / "stranger.py")
    run = subprocess.run(
        [sys.executable, script, shared.address, "app"], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert run.returncode == 0, run.stderr
    outcomes = json.loads(run.stdout)
    assert outcomes.pop("Health") == "OK"
    assert set(outcomes) == {"Stream", "Copy", "Status", "Barrier", "Switchover", "StepDown"}
    assert set(outcomes.values()) == {"UNAUTHENTICATED"}
    denied = poll(lambda: [line for line in shared.events("denied") if line["method"] == "StepDown"])
    assert denied[0]["logger"] == "walcast.audit"
    assert (denied[0]["identity"], denied[0]["database"], denied[0]["needs"]) == ("nobody", "app", "member")
    assert is_primary_still(shared)


@as_root
def test_what_another_user_answers_at_the_port_of_a_primary_is_not_believed(tmp_path: Path) -> None:
    script = "import os, socket; os.setgid(65534); os.setuid(65534); s = socket.create_server(('127.0.0.1', 0));"
    script += "print(s.getsockname()[1], flush=True); s.accept()[0].recv(1)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as impostor:
        assert impostor.stdout is not None
        said = walcast("status", f"127.0.0.1:{int(impostor.stdout.readline())}")
        impostor.kill()
    assert said.returncode == 1
    assert "another user of this machine" in said.stderr


# Rules


def test_where_the_user_is_not_trusted_everybody_needs_an_identity(tmp_path: Path) -> None:
    with primary_of(tmp_path, config="trust-user: false\n") as node:
        said = walcast("status", node.address)
        assert said.returncode == 1
        assert "needs the role status" in said.stderr
        local = walcast("status", tmp_path / "app.db", "--json")  # by the socket that only this user can reach
        assert json.loads(local.stdout)["role"] == "primary"


def test_rules_and_log_level_of_the_file_are_read_again_on_sighup_and_a_wrong_file_changes_nothing(
    tmp_path: Path,
) -> None:
    with primary_of(tmp_path, config="log-level: info\n") as node:
        file = next(tmp_path.glob("*.yml"))
        text = file.read_text()
        assert walcast("status", node.address).returncode == 0
        file.write_text(text.replace("log-level: info", "log-level: warning\ntrust-user: false\naccess: 7"))
        node.signal(signal.SIGHUP)
        said = node.wait_event("SIGHUP: not everything could be read again; what was before stays")
        assert len(said["errors"]) == 1
        assert walcast("status", node.address).returncode == 0
        file.write_text(text.replace("log-level: info", "log-level: debug\ntrust-user: false\naccess: []"))
        node.signal(signal.SIGHUP)
        said = node.wait_event("SIGHUP: read again")
        assert (said["access_rules"], said["log_level"]) == (0, "debug")
        assert walcast("status", node.address).returncode == 1
        assert node.events("configuration")[-1]["outcome"] == "reloaded"


def test_who_has_not_proven_who_it_is_may_read_by_a_rule_but_never_counts(tmp_path: Path) -> None:
    rules = "trust-user: false\naccess:\n  - who: anyone\n    databases: [app]\n    roles: [status, replicate]\n"
    with primary_of(tmp_path, config=rules) as node:
        replica = tmp_path / "replica.db"
        arguments = ["follower", str(replica), "--primary", node.address, "--name", "app", "--id", "edge-1"]
        follower = Node([*arguments, "--json", "--log-format", "json"], tmp_path, "follower").start()
        try:
            follower.ready()
            write(tmp_path / "app.db")
            at = barrier(node.address)
            assert walcast("wait", replica, f"{at.txid:016x}", "--timeout", "20").returncode == 0
            [listed] = json.loads(walcast("status", node.address, "--json").stdout)["databases"][0]["followers"]
            assert listed["id"] == "edge-1"
            with pytest.raises(NotEnoughFollowers), closing(Primary(node.address, name="app")) as primary:
                primary.barrier(followers=1, timeout=0.5)
            said = walcast("switchover", node.address, "--to", "edge-1")
            assert said.returncode == 1
            assert "needs the role operate" in said.stderr
        finally:
            follower.end()


def test_status_has_the_databases_of_whoever_asks_and_no_others_by_grpc_and_by_http_alike(tmp_path: Path) -> None:
    tokens = {name: new_token() for name in ("a", "all", "elsewhere", "reader")}
    file = tmp_path / "tokens"
    file.write_text("".join(token_line(name, token) + "\n" for name, token in tokens.items()))
    file.chmod(0o600)
    rules = (
        "access:\n"
        "  - who: a\n    databases: [alpha, gamma]\n    roles: [status]\n"
        "  - who: reader\n    databases: [alpha]\n    roles: [replicate]\n"
        "  - who: all\n    roles: [status]\n"
        "  - who: anyone\n    roles: []\n"
    )
    dbs = "".join(f"  - path: {create(tmp_path / f'{name}.db')}\n" for name in ("alpha", "beta"))
    (tmp_path / "walcast.yml").write_text(f"dbs:\n{dbs}{rules}")
    arguments = [
        "primary",
        "--config",
        str(tmp_path / "walcast.yml"),
        "--listen",
        "127.0.0.1:0",
        "--token-file",
        str(file),
    ]
    node = Node([*arguments, "--http", "127.0.0.1:0", "--json", "--log-format", "json"], tmp_path, "primary").start()
    try:
        ready = node.ready()
        for name, seen in {
            "a": ["alpha"],
            "all": ["alpha", "beta"],
            "elsewhere": None,
            "reader": None,
            "": None,
        }.items():
            token = bearer(tokens[name]) if name else ""
            over_http, code = http_status(ready["http"], token)
            over_grpc = grpc_status(ready["listen"], token)
            assert (code, over_http) == (200 if seen else 403, over_grpc), name
            assert (seen is None) == (over_grpc is None)
            if seen is not None:
                assert sorted(database["name"] for database in over_grpc["databases"]) == seen
        detail = barrier_detail(ready["listen"], bearer(tokens["a"]), "gamma")  # which is none
        assert "alpha" in detail
        assert "beta" not in detail
    finally:
        node.end()


def grpc_status(address: str, token: str) -> Any:
    metadata = ((AUTHORIZATION, token),) if token else ()
    with grpc.insecure_channel(address) as channel:
        try:
            reply = rpc.ReplicationStub(channel).Status(pb.StatusRequest(), timeout=CALL_S, metadata=metadata)
        except grpc.RpcError:
            return None
    return timeless(primary_facts(reply))


def timeless(facts: Any) -> Any:
    """Without what is another at every look."""
    return facts | {"databases": [database | {"look_age_ms": 0} for database in facts["databases"]]}


def http_status(address: str, token: str) -> tuple[Any, int]:
    asked = urllib.request.Request(f"http://{address}/status", headers={"Authorization": token} if token else {})
    try:
        with urllib.request.urlopen(asked, timeout=CALL_S) as answer:
            return timeless(json.load(answer)), answer.status
    except urllib.error.HTTPError as error:
        return None, error.code


def barrier_detail(address: str, token: str, database: str) -> str:
    metadata = ((AUTHORIZATION, token),) if token else ()
    with grpc.insecure_channel(address) as channel:
        request = pb.BarrierRequest(database=database)
        try:
            reply = rpc.ReplicationStub(channel).Barrier(request, timeout=CALL_S, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.details())
    return reply.refusal.detail


# Taking over needs proof


@pytest.mark.parametrize(
    ("term", "primary", "why"),
    [
        (2, "127.0.0.1:1", "no proof"),
        (2, "192.0.2.9:1", "is not on this machine"),
        (2000, "127.0.0.1:1", "is not believed"),
        (2**32 - 1, "127.0.0.1:1", "is not believed"),
        (2, "x", "HOST:PORT"),
    ],
)
def test_a_term_and_an_address_move_nobody(shared: Node, term: int, primary: str, why: str) -> None:
    reply = step_down(shared, term, primary)
    assert why in reply.refusal.detail
    assert is_primary_still(shared)


def test_a_primary_of_another_database_or_of_an_older_term_moves_nobody(shared: Node, tmp_path: Path) -> None:
    with primary_of(tmp_path / "other") as other:
        for term in (2, 3):
            reply = step_down(shared, term, other.address)
            assert "is not the primary of term" in reply.refusal.detail
    reply = step_down(shared, 2, shared.address)  # itself
    assert "is not the primary of term 2" in reply.refusal.detail
    assert is_primary_still(shared)


def test_a_node_starts_though_its_role_file_names_a_primary_that_it_may_not_reach(tmp_path: Path) -> None:
    with primary_of(tmp_path) as node:
        node.stop()
        write_standing(state_dir(tmp_path / "app.db"), Standing(FOLLOWER, 1, "192.0.2.9:1"))
        node.start()
        assert node.wait_event("cannot look for the primary where it was known last")
        assert walcast("status", tmp_path / "app.db").returncode == 0
        assert node.running
