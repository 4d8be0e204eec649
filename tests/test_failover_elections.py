"""Who takes over, and what happens when nodes die in the middle of a change; sets of their own."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from support.nodes import TESTS, poll, walcast
from support.replica_set import LEASE_S, ReplicaSet, SetNode, replica_set
from support.s3 import counted, moto_s3
from support.writers import pause

from walcast.errors import ConfigError, WalcastError
from walcast.statedir import state_dir
from walcast.terms import read_standing


def last(node: SetNode) -> object:
    return node.app()("SELECT a FROM t ORDER BY rowid DESC LIMIT 1")[0][0]


def test_of_equals_the_one_of_higher_priority_and_never_one_that_is_not_to_be_it(tmp_path: Path) -> None:
    flags = {"b": ["--never-promote"], "d": ["--priority", "1"]}
    with replica_set(tmp_path, ids=("a", "b", "c", "d"), flags=flags) as it:
        a, b, _, d = it.nodes.values()
        said = walcast("switchover", a.address, "--to", "b")
        assert said.returncode == 1
        assert "never to be promoted" in said.stderr
        for force in (False, True):
            with pytest.raises(ConfigError, match="--never-promote"):
                b.promote(force=force)
        a.kill()
        assert it.wait_primary(other_than="a") is d


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("ahead", ["b", "c"])
def test_the_one_that_has_the_most_takes_over(tmp_path: Path, ahead: str, stopped: bool) -> None:
    """Whoever of the two has less, by id or priority it would be the first. A stopped primary's connections stay: the
    one that has the most hears of its end only by silence."""
    [behind] = {"b", "c"} - {ahead}
    with replica_set(tmp_path, lease_s=1.0 if stopped else LEASE_S, flags={behind: ["--priority", "9"]}) as it:
        a = it.primary
        a.cut(it.node(behind))
        a.lose_store()  # or the other one has it from there; its tenure lasts a while
        a.app()("INSERT INTO t VALUES ('only one has this')")
        a.barrier(followers=1)
        a.pause() if stopped else a.kill()
        it.gates.heal(drop=True)
        assert it.wait_primary(other_than="a").id == ahead
        a.kill()
        a.find_store()
        a.start(ready=False)
        it.wait_level()
        assert last(it.node(behind)) == "only one has this"
        it.same_bytes()


@pytest.mark.slow
def test_the_archive_brings_a_candidate_up_to_what_no_follower_has(tmp_path: Path) -> None:
    with replica_set(tmp_path, ids=("a", "b")) as it:
        a, b = it.nodes.values()
        a.cut()
        a.app()("INSERT INTO t VALUES ('archived only')")
        a.barrier()
        assert poll(lambda: a.facts()["archive"]["txid"] == a.facts()["txid"])
        a.kill()
        it.gates.heal(drop=True)
        assert it.wait_primary(other_than="a") is b
        assert last(b) == "archived only"


@pytest.mark.slow
def test_one_that_was_behind_when_the_primary_was_last_heard_of_does_not_take_over_by_itself(tmp_path: Path) -> None:
    with replica_set(tmp_path, ids=("a", "b"), flags={"b": ["--max-lag", "0"]}) as it:
        a, b = it.nodes.values()
        for node in (a, b):
            node.lose_store()  # it would catch up from there
        a.find_store()
        b.pause()
        app = a.app(10.0)
        app("BEGIN")
        for _ in range(40):
            app("INSERT INTO t VALUES (randomblob(1000000))")
        app("COMMIT")
        wal = b.db.with_name("app.db-wal")
        before = wal.stat().st_size
        b.resume()
        assert poll(lambda: wal.stat().st_size > before + (1 << 20), every_s=0.0005)
        a.kill()
        b.find_store()
        pause(3 * LEASE_S)  # for what should not happen
        assert b.role == "follower"
        assert b.promote(force=True)["term"] == 2


@pytest.mark.slow
def test_a_node_that_is_deposed_again_and_again_keeps_each_time_what_only_it_had(tmp_path: Path) -> None:
    with replica_set(tmp_path, ids=("a", "b")) as it:
        a, b = it.nodes.values()
        for number in range(3):
            void = a.app()
            a.kill()
            assert it.wait_primary(other_than="a") is b
            void(f"INSERT INTO t VALUES ('void {number}')")
            a.start(ready=False)
            it.wait_level()
            assert len(a.discarded()) == number + 1
            a.promote()
            assert it.wait_level() is a
        it.same_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "hang", "close", "lose"])
def test_an_outage_of_s3_fences_and_its_end_lets_writers_go_on(tmp_path: Path, kind: str) -> None:
    with (
        moto_s3() as moto,
        counted(moto) as server,
        replica_set(tmp_path, ids=("a", "b"), archive=server.url(f"db-{kind}"), environment=server.environment()) as it,
    ):
        a = it.primary
        app, term = a.app(), a.term
        with server.traffic.outage(kind):
            assert a.is_("fenced", LEASE_S + 2.0)
            assert app.error("INSERT INTO t VALUES ('late')") == "database is locked"
        new = it.wait_primary()  # all have the store again at once: it may be either
        assert poll(lambda: new.app().ask("INSERT INTO t VALUES ('on')")["error"] is None, 10.0)
        it.wait_level()
        assert new.term == term or new is not a
        new.kill()
        other = it.wait_primary(other_than=new.id)
        new.start(ready=False)
        assert it.wait_level() is other
        it.same_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("offset", range(4))
def test_killed_in_the_middle_of_changes_the_set_comes_together(tmp_path: Path, seed: int, offset: int) -> None:
    """A change begins, and a moment later the one that gives or the one that takes is killed, or both."""
    rng = random.Random(seed + offset)
    auto = offset % 2 == 0
    with replica_set(tmp_path, lease_s=1.0, auto=auto, archive=auto) as it:
        for number in range(12):
            old = it.wait_level()
            old.app()("INSERT INTO t VALUES (?)", number)
            old.barrier(followers=2)
            new = rng.choice(it.followers)
            force = rng.random() < 0.3
            command = [
                sys.executable,
                "-m",
                "walcast_node.cli",
                "promote",
                str(new.db),
                *(["--force"] if force else []),
            ]
            begun = partial(has_begun, new, rng)
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=TESTS.parent
            ) as asking:
                poll(begun, 5.0, 0.003)
                pause(rng.random() * 0.05)
                victims = rng.choice(([old], [new], [old, new]))
                for victim in victims:
                    victim.kill()
                if rng.random() < 0.5:
                    pause(rng.random() * 1.5)
                for victim in victims:
                    victim.start(ready=False)
                asking.kill()
            one = come_together(it, auto)
            assert last(one) == number, "what two followers had is lost"
        it.same_bytes()


def has_begun(new: SetNode, rng: random.Random) -> bool:
    """The node that is asked is no follower any more, or it is too late to wait for that."""
    return new.role != "follower" or rng.random() < 0.02


def come_together(it: ReplicaSet, auto: bool) -> SetNode:
    """Without a lease an operator may have to say who it is."""
    if not auto and not poll(lambda: it.find_primary(), 10.0, 0.05):
        most = max(it.nodes.values(), key=lambda node: (node.facts()["term"], node.facts()["txid"]))
        try:
            most.promote(force=True)
        except WalcastError:
            pass
    return it.wait_level()


@pytest.mark.slow
def test_killed_while_it_rejoins_it_keeps_the_discarded_once(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with replica_set(tmp_path, ids=("a", "b"), lease_s=1.0) as it:
        for number in range(6):
            a = it.wait_level()
            [b] = [node for node in it.nodes.values() if node is not a]
            kept = len(a.discarded())
            void = a.app()
            a.kill()
            assert it.wait_primary(other_than=a.id) is b
            void("INSERT INTO t VALUES (?)", f"void {number}")
            for _ in range(3):
                a.start(ready=False)
                pause(rng.random() * 0.15)
                a.kill()
            a.start(ready=False)
            assert it.wait_level() is b
            assert len(a.discarded()) == kept + 1
            assert f"void {number}" not in [row for [row] in a.app()("SELECT a FROM t")]
        it.same_bytes()


@pytest.mark.slow
def test_a_node_in_a_network_of_its_own_is_fenced_and_follows_when_it_is_back(tmp_path: Path) -> None:
    """As the gates do it, with the kernel's own means."""
    if shutil.which("ip") is None or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("network namespaces cannot be made here")
    script = str(TESTS / "support" / "failover_namespaces.py")
    done = subprocess.run(
        ["unshare", "-rnm", sys.executable, script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_first_write_after_a_kill_is_not_late(tmp_path: Path) -> None:
    """Lease 2 s: within the lease and two seconds, every time."""
    with replica_set(tmp_path, ids=("a", "b")) as it:
        for _ in range(5):
            old = it.wait_level()
            [new] = it.followers
            app = new.app()
            old.kill()
            since_s = time.monotonic()
            assert poll(lambda app=app: app.ask("INSERT INTO t VALUES (1)")["error"] is None, 10.0)
            assert time.monotonic() - since_s < LEASE_S + 2.0
            standing = read_standing(state_dir(new.db))
            assert standing is not None
            assert standing.role == "primary"
            old.start(ready=False)
