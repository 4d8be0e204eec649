"""Primary, followers, apps and readers, all real processes: what the whole promises.

Every campaign ends in the same way: the readers' histories are checked against the writers', and replica and primary
are one byte string.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.e2e_state import Observation, create, observe_at
from support.history import check, read_commits
from support.nodes import Node, barrier, follower, poll, position_of, primary, wait_level, walcast
from support.writers import AUTOCHECKPOINTS, WILD, Child, Readers, checkpointed, pause, readers, sql, writer

# Leaves the two cores to the processes under test.
PAUSE_S = 0.002


@dataclass
class House:
    """One primary, its followers, apps and readers."""

    directory: Path
    stack: ExitStack
    seed: int
    primary: Node
    first: Observation
    followers: list[Node] = field(default_factory=list)
    replicas: list[Path] = field(default_factory=list)
    apps: list[Child] = field(default_factory=list)
    watching: list[Readers] = field(default_factory=list)

    @property
    def db(self) -> Path:
        return self.directory / "app.db"

    def follow(self, *flags: str | Path) -> Node:
        """One more follower, connected."""
        path = self.directory / f"replica{len(self.replicas)}" / "app.db"
        node = self.stack.enter_context(follower(path, self.primary.address, *flags))
        self.followers.append(node)
        self.replicas.append(path)
        return node

    def write(self, **options: Any) -> Child:
        """One more app; its history counts."""
        name = self.directory / f"commits{len(self.apps)}"
        common = {"seed": self.seed + len(self.apps), "history": name, "pause_s": PAUSE_S}
        app = self.stack.enter_context(writer(self.db, **(common | options)))
        self.apps.append(app)
        return app

    def read(self, *modes: str, replica: int = 0) -> Readers:
        """Readers of a replica until the end."""
        seen = self.stack.enter_context(readers(self.replicas[replica], self.directory, modes))
        self.watching.append(seen)
        seen.wait(1)
        return seen

    def app_stop(self) -> None:
        for app in self.apps:
            if not app.facts:
                app.stop()

    def level(self) -> None:
        """Writers stop; all followers get level."""
        self.app_stop()
        wait_level(self.primary.address, *self.replicas)

    def finish(self) -> None:
        """Level, histories right, bytes equal."""
        self.level()
        for seen in self.watching:
            seen.wait(1)
            seen.stop()
        commits = [self.first, *read_commits(*self.directory.glob("commits*"))]
        for seen in self.watching:
            assert check(commits, seen.histories()) == []
            assert max(facts["longest_s"] for facts in seen.facts) < 5.0
        for node in [*self.followers, self.primary]:
            assert node.stop() == 0
        data = checkpointed(self.db)
        for replica in self.replicas:
            assert checkpointed(replica) == data, "not the same bytes"


@contextmanager
def house(directory: Path, seed: int, *flags: str, page_size: int = 4096) -> Iterator[House]:
    db = directory / "app.db"
    create(db, seed=seed, page_size=page_size)
    first = observe_at(db)
    with ExitStack() as stack:
        yield House(directory, stack, seed, stack.enter_context(primary(db, *flags)), first)


# Bootstrap


def test_two_followers_bootstrap_from_the_primary_under_load_and_stay_level(tmp_path: Path, seed: int) -> None:
    with house(tmp_path, seed) as it:
        it.write()
        it.write(autocheckpoint=[100])
        for _ in range(2):
            it.follow()
        it.read("short", "long")
        it.read("new", replica=1)
        for seen in it.watching:
            seen.wait(5)
        it.finish()


def test_a_follower_bootstraps_from_the_archive_and_joins_the_stream(tmp_path: Path, seed: int) -> None:
    archive = tmp_path / "archive"
    with house(tmp_path, seed, str(archive)) as it:
        it.write()
        assert poll(lambda: list(archive.rglob("*.ltx")))
        node = it.follow("--archive", archive)
        it.read("short", "long")
        it.watching[0].wait(5)
        assert node.events("bootstrapped from the archive")
        assert not node.events("copied from the primary")
        it.finish()


def test_an_archive_with_nothing_in_it_leads_to_the_primary(tmp_path: Path, seed: int) -> None:
    (tmp_path / "archive").mkdir()
    with house(tmp_path, seed) as it:
        node = it.follow("--archive", tmp_path / "archive")
        assert node.events("copied from the primary")
        it.finish()


# Kills


def kill_rounds(tmp_path: Path, seed: int, rounds: int, victims: str) -> None:
    rng = random.Random(seed)
    with house(tmp_path, seed, page_size=rng.choice((1024, 4096, 16384))) as it:
        it.write(weights=WILD, autocheckpoint=AUTOCHECKPOINTS)
        it.write(synchronous="FULL")
        it.follow()
        it.follow()
        it.read("short", "long")
        it.read("short", "new", replica=1)
        for _ in range(rounds):
            pause(rng.random() * 0.4)
            node = {"follower": it.followers[0], "primary": it.primary}.get(victims) or rng.choice(
                [*it.followers, it.primary]
            )
            node.kill()
            for seen in it.watching:
                seen.wait(1)  # readers go on while it is dead
            node.start()
            pause(rng.random() * 0.8)
            if rng.random() < 0.5:
                node.ready()
        barrier(it.primary.address)
        for seen in it.watching:
            seen.wait(2)
        it.finish()


@pytest.mark.parametrize("victims", ["follower", pytest.param("primary", marks=pytest.mark.slow)])
def test_killed_at_random_under_load_no_reader_notices(tmp_path: Path, seed: int, victims: str) -> None:
    kill_rounds(tmp_path, seed, 1, victims)


@pytest.mark.slow
@pytest.mark.parametrize("offset", range(10))
def test_all_of_them_killed_at_random_many_times(tmp_path: Path, seed: int, offset: int) -> None:
    kill_rounds(tmp_path, seed + offset, 25, "any")


# What writers do under readers


def test_vacuum_schema_changes_and_shrinking_go_on_under_readers(tmp_path: Path, seed: int) -> None:
    weights = {"transfer": 10, "grow": 40, "forget": 8, "schema": 10, "vacuum": 5, "checkpoint": 5, "rollback": 5}
    with house(tmp_path, seed) as it:
        it.follow()
        it.write(weights=weights, autocheckpoint=AUTOCHECKPOINTS, row_bytes=30000, cache_size=10)
        it.read("short", "short", "long")
        it.watching[0].wait(4)
        it.app_stop()
        with sql(it.db) as last:  # a big shrink
            last("DELETE FROM filler")
            last("UPDATE state SET commit_seq = commit_seq + 1")
            last("VACUUM")
        wait_level(it.primary.address, *it.replicas)
        assert observe_at(it.replicas[0]) == observe_at(it.db)
        it.watching[0].stop()
        seen = it.watching.pop().histories()
        # What the last two commits were only the primary's own reader can tell.
        late = {o for h in seen.values() for o in h if isinstance(o, Observation)} & {observe_at(it.db)}
        commits = [it.first, *read_commits(*it.directory.glob("commits*")), *late]
        wrong = check(commits, seen)
        assert [w for w in wrong if "went back" in w or "sum" in w or "!" in w] == []
        it.finish()


def test_a_big_transaction_arrives_whole(tmp_path: Path, seed: int) -> None:
    with house(tmp_path, seed) as it:
        it.follow()
        it.read("short", "long")
        with sql(it.db) as one:
            one("BEGIN")
            for _ in range(50):
                one("INSERT INTO filler (body) VALUES (randomblob(1000000))")
            one("COMMIT")
        wait_level(it.primary.address, *it.replicas)
        it.watching.pop().stop()
        assert observe_at(it.replicas[0]) == observe_at(it.db)
        it.finish()


# A replica and its apps


def test_an_app_cannot_write_to_a_replica_and_changes_nothing(tmp_path: Path, seed: int) -> None:
    with house(tmp_path, seed) as it:
        it.follow()
        with sql(it.replicas[0], timeout_s=0.2) as app:
            before = observe_at(it.replicas[0])
            for statement in (
                "UPDATE accounts SET balance = 0",
                "CREATE TABLE mine (a)",
                "BEGIN IMMEDIATE",
                "VACUUM",
                "PRAGMA journal_mode = DELETE",
            ):
                assert "locked" in app.error(statement), statement
            assert app("PRAGMA user_version") == [[0]]
            assert app.error("PRAGMA user_version = 7") == "database is locked"
            for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
                app.ask(f"PRAGMA wal_checkpoint({mode})")
                assert app.seconds < 2.0
            assert observe_at(it.replicas[0]) == before
        it.write()
        it.finish()


def test_readers_open_and_read_when_the_follower_is_stopped(tmp_path: Path, seed: int) -> None:
    with house(tmp_path, seed) as it:
        it.follow()
        it.write()
        it.read("short", "long", "new")
        it.watching[0].wait(2)
        assert it.followers[0].stop() == 0
        it.watching[0].wait(2)
        assert json.loads(walcast("status", it.replicas[0], "--json").stdout)["state"] == "stopped"
        it.followers[0].start().ready()
        it.watching[0].wait(2)
        it.finish()


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_replica_that_an_app_changed_meanwhile_is_mended_with_few_pages(
    tmp_path: Path, seed: int, kill: bool
) -> None:
    with house(tmp_path, seed) as it:
        with sql(it.db) as one:
            one("INSERT INTO filler (body) VALUES (randomblob(2000000))")
        it.follow()
        wait_level(it.primary.address, *it.replicas)
        node = it.followers[0]
        node.kill() if kill else node.stop()
        with sql(it.replicas[0]) as app:
            app("UPDATE accounts SET balance = balance + 1 WHERE id = 3")
            app("CREATE TABLE mine (a)")
        node.start().ready()
        copied = node.wait_event("copied from the primary", 2)
        assert 0 < copied["pages"] < 10 < 500 < copied["of"]
        wait_level(it.primary.address, *it.replicas)
        it.finish()


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_flipped_byte_in_the_replica_is_mended(tmp_path: Path, seed: int, kill: bool) -> None:
    with house(tmp_path, seed) as it:
        with sql(it.db) as one:
            one("INSERT INTO filler (body) VALUES (randomblob(2000000))")
        it.follow()
        wait_level(it.primary.address, *it.replicas)
        node = it.followers[0]
        node.kill() if kill else node.stop()
        checkpointed(it.replicas[0])
        with it.replicas[0].open("r+b") as file:
            at = random.Random(seed).randrange(4096, 1 << 20)
            file.seek(at)
            [byte] = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))
        node.start().ready()
        assert node.wait_event("copied from the primary", 2)["pages"] == 1
        wait_level(it.primary.address, *it.replicas)
        it.finish()


def test_a_replica_with_readers_in_it_is_mended_under_them(tmp_path: Path, seed: int) -> None:
    """The replica of one primary is given to another, whose database is a later state of the same app."""
    with house(tmp_path, seed, "--log-max-bytes", str(1 << 20)) as it:
        it.follow()
        it.write()
        it.read("short", "long")
        it.watching[0].wait(2)
        it.followers[0].kill()
        positions = it.replicas[0].parent / "app.db-walcast" / "positions"
        positions.write_bytes(b"")  # its position is not known any more
        with sql(it.db) as one:  # nor to the primary, whose log moves on
            while first_txid(it) <= position_of(it.replicas[0]).txid:
                one("INSERT INTO filler (body) VALUES (randomblob(1000000))")
                barrier(it.primary.address)
        it.followers[0].start().ready()
        it.followers[0].wait_event("copied from the primary", 2)
        it.watching[0].wait(2)
        it.finish()


# Falling behind


@pytest.mark.parametrize("way", ["primary", pytest.param("archive", marks=pytest.mark.slow)])
def test_a_follower_far_behind_a_tiny_log_catches_up(tmp_path: Path, seed: int, way: str) -> None:
    archive = tmp_path / "archive"
    flags = [str(archive)] if way == "archive" else []
    with house(tmp_path, seed, *flags, "--log-max-bytes", str(1 << 20)) as it:
        it.follow(*(["--archive", archive] if way == "archive" else []))
        it.read("short", "long")
        node = it.followers[0]
        behind = position_of(it.replicas[0])
        node.kill()
        with sql(it.db) as one:
            for _ in range(3):
                one("INSERT INTO filler (body) VALUES (randomblob(1000000))")
                at = barrier(it.primary.address)
                if way == "archive":
                    assert poll(lambda at=at: archived_txid(it) >= at.txid, every_s=0.05)
        assert first_txid(it) > behind.txid, "the log has moved on"
        node.start().ready()
        wait_level(it.primary.address, *it.replicas)
        assert len(node.events("caught up from the archive")) == (way == "archive")
        it.watching.pop().stop()
        assert observe_at(it.replicas[0]) == observe_at(it.db)
        it.finish()


def status(it: House) -> dict[str, Any]:
    done = walcast("status", it.primary.address, "--json")
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)["databases"][0]
    return facts


def archived_txid(it: House) -> int:
    return int(status(it)["archive"]["txid"])


def first_txid(it: House) -> int:
    return int(status(it)["log"]["first_txid"])


def test_a_stuck_follower_costs_the_primary_nothing(tmp_path: Path, seed: int) -> None:
    with house(tmp_path, seed, "--log-max-bytes", str(4 << 20)) as it:
        it.follow()
        it.follow()
        wait_level(it.primary.address, *it.replicas)
        stuck = it.followers[0]
        stuck.signal(signal.SIGSTOP)
        with sql(it.db) as one:
            one("PRAGMA synchronous = OFF")
            one("INSERT INTO filler (body) VALUES (randomblob(1000000))")
            barrier(it.primary.address)
            before = it.primary.rss_bytes()
            for _ in range(60):
                one("UPDATE filler SET body = randomblob(1000000)")
                assert one.seconds < 1.0
                barrier(it.primary.address)
        wait_level(it.primary.address, it.replicas[1])  # the other one is not held up
        assert it.primary.rss_bytes() - before < 24 << 20
        assert status(it)["log"]["bytes"] < 8 << 20
        assert Path(f"{it.db}-wal").stat().st_size < 32 << 20
        stuck.signal(signal.SIGCONT)
        wait_level(it.primary.address, *it.replicas)
        it.finish()


# verify


def test_verify_says_equal_and_says_which_byte_is_not(tmp_path: Path, seed: int) -> None:
    with house(tmp_path, seed) as it:
        it.follow()
        it.write()
        for _ in range(2):  # under load, too
            done = walcast("verify", it.replicas[0], "--primary", it.primary.address)
            assert (done.returncode, done.stdout[:6]) == (0, "equal:"), done.stderr
        it.level()
        assert it.followers[0].stop() == 0
        checkpointed(it.replicas[0])
        data = bytearray(it.replicas[0].read_bytes())
        data[9000] ^= 1
        it.replicas[0].write_bytes(data)
        done = walcast("verify", it.replicas[0], "--primary", it.primary.address)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        it.followers[0].start().ready()
        it.followers[0].wait_event("copied from the primary", 2)
        wait_level(it.primary.address, *it.replicas)
        assert walcast("verify", it.replicas[0], "--primary", it.primary.address).returncode == 0
        it.finish()


# The primary


@pytest.mark.slow
def test_what_was_written_while_the_primary_was_down_needs_no_new_copy(tmp_path: Path, seed: int) -> None:
    with house(tmp_path, seed) as it:
        it.follow()
        it.read("short", "long")
        for how in ("stop", "kill"):
            it.primary.stop() if how == "stop" else it.primary.kill()
            db = sqlite3.connect(it.db, isolation_level=None)
            for _ in range(5):
                db.execute("UPDATE state SET commit_seq = commit_seq + 1")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.close()
            state = observe_at(it.db)
            it.primary.start().ready()
            assert poll(lambda state=state: observe_at(it.replicas[0]) == state)
        assert len(it.followers[0].events("copied from the primary")) == 1
        wait_level(it.primary.address, *it.replicas)
        it.watching.pop().stop()
        it.finish()
