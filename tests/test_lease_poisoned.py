"""A lease that no node can go by, which anybody can make who may write to the archive. Writers are held, nothing of it
is kept, no process ends, and a mended lease is gone by at once."""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.nodes import Node, poll, primary
from support.writers import sql

from walcast import local
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.statedir import state_dir
from walcast.store import ForeignObject, ObjectChanged, Store, open_store
from walcast.store.directory import DirectoryStore
from walcast.terms import PRIMARY, Standing, read_standing
from walcast_node.config.settings import DatabaseSettings
from walcast_node.failover.claims import PREFIX, Claim
from walcast_node.failover.decisions import start, step
from walcast_node.failover.keeper import Keeper
from walcast_node.failover.lease import KEY, Lease
from walcast_node.failover.leasing import Leasing
from walcast_node.failover.state import HandOver, NotHandedOver, Role, State, Step
from walcast_node.failover.state import Node as Told

GOOD = Lease(3, "h", "10.0.0.1:7420", 2.0, "n-1")
SOON_S = 20.0


def facts_of(lease: Lease, **facts: Any) -> bytes:
    return json.dumps(json.loads(lease.encode(0)) | facts).encode()


POISON: dict[str, bytes] = {
    "an absurd term": facts_of(GOOD, term=2**32 - 1, holder="evil"),
    "a term far above": facts_of(GOOD, term=5000, holder="evil"),
    "no address": facts_of(GOOD, term=4, holder="evil", address="x"),
    "a day": facts_of(GOOD, lease_s=86_400.0),
    "a long id": facts_of(GOOD, holder="A" * 20_000),
    "nothing": b"",
    "deep": b"[" * 15_000,
    "digits": b'{"walcast_lease": 1, "term": ' + b"9" * 15_000 + b"}",
}


def poison(store: Store, data: bytes) -> None:
    """By compare-and-swap, as anybody can who may write there."""
    for _ in range(1000):
        found = store.read(KEY)
        try:
            store.swap(KEY, data, found.version if found is not None else None)
        except ObjectChanged:
            continue
        return
    raise AssertionError("the lease could not be written")


def keeper_of(store: Store, state: State | None = None) -> Keeper:
    return Keeper(
        store,
        state or start(Told("me", "me:1", "run", 2.0), term=3, primary=False),
        act=lambda action: None,
        changed=lambda state: None,
        claim=lambda nonce: pytest.fail("claims"),
    )


@pytest.mark.parametrize("data", POISON.values(), ids=POISON)
def test_no_node_goes_by_a_poisoned_lease(tmp_path: Path, data: bytes) -> None:
    store = DirectoryStore(tmp_path)
    poison(store, data)
    with pytest.raises(Unavailable):
        keeper_of(store)._read()
    poison(store, GOOD.encode(0))
    assert keeper_of(store)._read()[0] == GOOD


def test_a_lease_object_of_two_gigabytes_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    poison(store, GOOD.encode(0))
    [path] = (tmp_path / KEY).iterdir()
    with path.open("r+b") as file:
        file.truncate(2 << 30)
    with pytest.raises(ForeignObject):
        store.read(KEY)
    path.unlink()
    path.mkdir()
    with pytest.raises(ForeignObject):
        store.read(KEY)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ForeignObject):
        store.read(KEY)
    path.rename(path.with_name("f" * 16))
    with pytest.raises(ForeignObject):
        store.read(KEY)


@pytest.mark.parametrize("data", [None, b"mine", b"1" * 16 + b" " + b"2" * 16 + b"\nx"])
def test_where_something_lies_in_the_leases_place_a_node_that_was_told_of_none_does_not_act(
    tmp_path: Path, data: bytes | None
) -> None:
    """Another node may be the primary by it: a folder of somebody's files, a damaged version, one without those before
    it."""
    (tmp_path / KEY).mkdir()
    (tmp_path / KEY / ("README" if data is None else f"{9:016x}")).write_bytes(data or b"mine")
    database = DatabaseSettings(tmp_path / "app.db", "app", str(tmp_path))
    member: Any = SimpleNamespace(
        settings=SimpleNamespace(database=database, auto=False, replace=False, force=False),
        standing=Standing(PRIMARY, 1),
        database_id="",
        is_primary=True,
        path=database.path,
    )
    leasing = Leasing(member)
    assert asyncio.run(leasing.find())
    leasing.close()


def test_what_lies_among_the_claims_and_is_none_counts_for_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    mine = Claim("a", "n", 3, 7)
    store.put(mine.key, mine.encode(), timestamp_ms=1)
    store.put(PREFIX + "other", Claim("b", "n", 3, 9).encode(), timestamp_ms=2)  # says it is another node's
    store.put(PREFIX + "junk", b"{", timestamp_ms=3)
    with (tmp_path / PREFIX / "big").open("wb") as file:
        file.truncate(2 << 30)
    assert keeper_of(store)._read_claims() == (mine,)


def test_no_claim_and_no_crowd_of_them_keeps_an_election_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that may not be read, not one that takes its time, not hundreds that are newer than those of the set."""
    store = DirectoryStore(tmp_path)
    known, get = Claim("member", "n", 3, 9), store.get
    store.put(known.key, known.encode(), timestamp_ms=1)
    for number in range(300):
        store.put(f"{PREFIX}x{number}", Claim(f"x{number}", "n", 3, 1).encode(), timestamp_ms=2)

    def slow(key: str, start: int = 0, length: int | None = None) -> bytes:
        if key.endswith("x299"):
            raise ConfigError("no permission")
        time.sleep(0.05)
        return get(key, start, length)

    monkeypatch.setattr(store, "get", slow)
    state = start(Told("me", "me:1", "run", 1.0), term=3, primary=False)
    keeper = keeper_of(store, replace(state, lease=replace(GOOD, lease_s=1.0, followers=("member",))))
    began_s = time.monotonic()
    found = keeper._read_claims()
    assert time.monotonic() - began_s < 0.25
    assert found[0] == known


@pytest.mark.parametrize(
    ("to", "address"), [("A" * 20_000, "h:1"), ("h", "x"), ("h\n", "h:1"), ("h", "h:1" + "1" * 300)]
)
def test_the_lease_is_not_handed_to_whom_it_cannot_name(to: str, address: str) -> None:
    node = Told("me", "me:1", "run", 10.0)
    held = Lease(3, "me", "me:1", 10.0, "run-1")
    acting = replace(start(node, term=3, primary=True), role=Role.PRIMARY, lease=held, version="1", until_s=99.0)
    acting = replace(acting, from_s=-math.inf)
    after: Step = step(acting, HandOver(1.0, to, address))
    assert after[0].hand_to is None
    assert NotHandedOver() in after[1]


# Real nodes


def is_held(path: Path) -> bool:
    with sql(path, 0.0) as app:
        try:
            app("INSERT INTO t VALUES (1)")
        except Exception as error:  # noqa: BLE001 - of another process, whichever
            return "locked" in str(error)
    return False


def facts(path: Path) -> dict[str, Any]:
    try:
        with local.ask(path, "status", timeout_s=5.0) as (answer, _):
            return dict(answer["databases"][0])
    except (WalcastError, OSError):
        return {"role": "", "trouble": ""}


def create(path: Path) -> None:
    with sql(path) as app:
        app("PRAGMA journal_mode = WAL")
        app("CREATE TABLE t (a)")


def waits(what: Callable[[], Any]) -> bool:
    return bool(poll(what, SOON_S, 0.05))


def restarted(node: Node) -> None:
    node.kill()
    node.start()


def test_a_poisoned_lease_holds_writers_and_ends_no_process_and_a_mended_one_lets_them_go(tmp_path: Path) -> None:
    path, url = tmp_path / "app.db", str(tmp_path / "archive")
    create(path)
    with primary(path, url, "--auto-failover", "--lease-time", "1", "--id", "p") as node, open_store(url) as store:
        found = store.read(KEY)
        assert found is not None
        good = Lease.decode(found.data)
        for name in ("an absurd term", "no address"):
            poison(store, POISON[name])
            assert waits(lambda: facts(path)["role"] == "fenced"), name
            assert is_held(path)
            assert "walcast repair" in facts(path)["trouble"]
            if name == "no address":
                restarted(node)  # a node that finds it there stays, too, and holds them
            assert waits(lambda: facts(path)["role"] == "fenced"), name
            assert is_held(path)
            standing = read_standing(state_dir(path))
            assert standing is None or standing.term == good.term
            poison(store, replace(good, nonce=secrets.token_hex(8)).encode(time.time()))
            assert waits(lambda: facts(path)["role"] == "primary"), name
            assert not is_held(path)
        said = [line for line in node.events() if line["event"] == "the lease cannot be asked for, trying again"]
        assert 2 <= len(said) <= 6


@pytest.mark.parametrize("flags", [("--auto-failover", "--lease-time", "1"), ()], ids=["with a lease", "without"])
def test_a_node_that_starts_where_an_unreadable_lease_lies_stays_and_goes_on_when_it_is_gone(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Also one that was not told of a lease: where one lies, another node may be the primary."""
    path, url = tmp_path / "app.db", str(tmp_path / "archive")
    create(path)
    store = DirectoryStore(tmp_path / "archive")
    poison(store, POISON["no address"])
    arguments = ["primary", str(path), url, "--listen", "127.0.0.1:0", "--id", "p", "--log-format", "json", *flags]
    node = Node(arguments, tmp_path, "primary").start()
    try:
        node.wait_event("the lease cannot be read", seconds=SOON_S)
        assert waits(lambda: facts(path)["role"] == "fenced")
        assert is_held(path)
        poison(store, replace(GOOD, term=1, holder="p", lease_s=1.0).encode(time.time()))
        assert waits(lambda: facts(path)["role"] == "primary")
        assert node.running
    finally:
        node.end()
