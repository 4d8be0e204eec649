"""A lease that no node can go by, shown with the reason and replaced by hand, in a folder and in S3."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.s3 import S3Server, moto_s3, rclone_s3

from walcast.errors import ConfigError
from walcast.store import ObjectChanged, Store, open_store
from walcast.store.directory import DirectoryStore
from walcast.store.s3 import S3Store
from walcast.store.swaps import MAX_SWAP_BYTES
from walcast_node.failover.decisions import EARLY, start, step
from walcast_node.failover.lease import KEY, Lease
from walcast_node.failover.repair_lease import Found, Known, LeaseChange, look, plan, write
from walcast_node.failover.state import Found as FoundLease
from walcast_node.failover.state import Node, Role

GOOD = Lease(3, "a", "10.0.0.1:7420", 10.0, "n-1", database="0" * 32)
KNOWN = Known(3, "0" * 32)
WANTED = LeaseChange(4, "b", "10.0.0.2:7420", 10.0)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    server: S3Server | None = request.getfixturevalue("moto") if request.param == "s3" else None
    with open_store(server.spec(tmp_path.name) if server else str(tmp_path / "archive")) as opened:
        yield opened


def replaced(store: Store, found: Found, change: LeaseChange = WANTED) -> str | None:
    kept = write(store, found, plan(found, change, KNOWN))
    after = look(store, KNOWN)
    assert after.lease is not None
    assert (after.lease.term, after.lease.holder, after.wrong) == (4, "b", "")
    return kept


# What is there


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (b'{"hello": 1}\n', {"bytes": 13, "content": '{"hello": 1}\\n'}),
        (json.dumps(json.loads(GOOD.encode(0)) | {"walcast_lease": 2}).encode(), {}),
        (GOOD.encode(0).replace(b'"holder"', b'"keeper"'), {}),
        (b"\xff\x00\x1b[2J", {"bytes": 6, "content": "\\xff\\x00\\x1b[2J"}),
        (b"", {"bytes": 0, "content": ""}),
    ],
)
def test_what_is_no_lease_is_shown_with_the_reason_and_replaced(
    store: Store, data: bytes, facts: dict[str, object]
) -> None:
    store.swap(KEY, data, None)
    found = look(store, KNOWN)
    shown = found.facts()
    assert shown is not None
    assert shown["error"]
    assert facts.items() <= shown.items()
    assert found.lease is None
    assert replaced(store, found) is None


@pytest.mark.parametrize(
    "lease", [replace(GOOD, term=5000), replace(GOOD, database="f" * 32)], ids=["a term far above", "another database"]
)
def test_a_lease_that_is_read_and_not_believed_says_why(store: Store, lease: Lease) -> None:
    store.swap(KEY, lease.encode(0), None)
    found = look(store, KNOWN)
    assert (found.lease, bool(found.wrong)) == (lease, True)
    replaced(store, found)


def test_a_lease_that_nodes_go_by_has_no_error(store: Store) -> None:
    assert look(store, KNOWN).facts() is None
    store.swap(KEY, GOOD.encode(0), None)
    facts = look(store, KNOWN).facts()
    assert facts is not None
    assert (facts["holder"], facts["waits"], "error" in facts) == ("a", False, False)


def test_a_lease_whose_holder_must_wait_is_shown_as_that(store: Store) -> None:
    store.swap(KEY, replace(GOOD, nonce="n-2" + EARLY).encode(0), None)
    facts = look(store, KNOWN).facts()
    assert facts is not None
    assert (facts["waits"], "error" in facts) == (True, False)


# What is no object of the store's: it makes way, and is kept


def fifo(path: Path) -> None:
    os.mkfifo(path)


def file(path: Path) -> None:
    path.write_bytes(b"mine")


def folder_of_another(path: Path) -> None:
    path.mkdir()
    (path / "README").write_bytes(b"mine")


def missing_versions(path: Path) -> None:
    path.mkdir()
    (path / f"{7:016x}").write_bytes(b"1" * 16 + b" " + b"2" * 16 + b"\nx")


def damaged_version(path: Path) -> None:
    path.mkdir()
    (path / f"{1:016x}").write_bytes(b"mine")


@pytest.mark.parametrize("make", [fifo, file, folder_of_another, missing_versions, damaged_version])
def test_what_is_no_object_in_a_folder_is_kept_under_another_name(tmp_path: Path, make: Callable[[Path], None]) -> None:
    store = DirectoryStore(tmp_path)
    make(tmp_path / KEY)
    found = look(store, KNOWN)
    assert found.is_foreign
    kept = replaced(store, found)
    assert kept is not None
    assert os.path.lexists(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([KEY, Path(kept).name])


def test_what_is_no_object_in_s3_is_kept_under_another_name(moto: S3Server) -> None:
    with S3Store(moto.spec("big")) as store:
        body = b"x" * (MAX_SWAP_BYTES + 1)
        store.put(KEY, body, timestamp_ms=0)
        found = look(store, KNOWN)
        assert found.is_foreign
        assert replaced(store, found)
        [kept] = [one for one in store.list(KEY) if one.key != KEY]
        assert kept.size == len(body)


def test_where_a_node_made_a_lease_meanwhile_nothing_is_moved(store: Store) -> None:
    store.swap(KEY, GOOD.encode(0), None)
    foreign = Found(wrong="as it was looked at")
    with pytest.raises(ObjectChanged):
        write(store, foreign, plan(foreign, WANTED, KNOWN))
    assert look(store, KNOWN).lease == GOOD


def test_what_was_written_since_it_was_looked_at_stays(store: Store) -> None:
    version = store.swap(KEY, b"garbage", None)
    found = look(store, KNOWN)
    store.swap(KEY, GOOD.encode(0), version)
    with pytest.raises(ObjectChanged):
        write(store, found, plan(found, WANTED, KNOWN))
    assert look(store, KNOWN).lease == GOOD


def test_in_a_store_that_ignores_preconditions_no_lease_is_written(tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as server, open_store(server.spec()) as store:
        store.put(KEY, b"garbage", timestamp_ms=0)
        found = look(store, KNOWN)
        assert found.wrong
        with pytest.raises(ConfigError):
            write(store, found, plan(found, WANTED, KNOWN))
        assert store.get(KEY) == b"garbage"


# What is written


def test_the_new_holder_does_not_act_while_the_one_before_may() -> None:
    lease = plan(Found(GOOD.encode(0), "1", GOOD), WANTED, KNOWN)
    state = start(Node("b", "10.0.0.2:7420", "run", 10.0), term=3, primary=False)
    state, _ = step(state, FoundLease(100.0, lease, "2"))
    assert state.from_s == 100.0 + lease.lease_s
    assert not state.may_act(100.0 + lease.lease_s - 0.1)
    assert state.role is Role.FOLLOWER


@pytest.mark.parametrize(
    ("found", "change"),
    [
        (Found(), WANTED),
        (Found(b"x", "1", wrong="no lease"), LeaseChange(4)),
        (Found(b"x", "1", wrong="no lease"), LeaseChange(4, "b")),
        (Found(b"x", "1", wrong="no lease"), replace(WANTED, address="nowhere")),
        (Found(b"x", "1", wrong="no lease"), replace(WANTED, holder="b\n")),
        (Found(b"x", "1", wrong="no lease"), replace(WANTED, term=5000)),
        (Found(b"x", "1", GOOD), LeaseChange(4, "b")),  # at the address of another
        (Found(b"x", "1", GOOD), replace(WANTED, lease_s=9.0)),
    ],
)
def test_a_lease_that_would_help_nobody_is_not_planned(found: Found, change: LeaseChange) -> None:
    with pytest.raises(ConfigError):
        plan(found, change, KNOWN)
