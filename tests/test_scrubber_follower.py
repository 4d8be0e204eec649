"""A replica that something other than walcast changed is mended from the primary, and is its equal again. Real
processes; bytes are changed behind SQLite's back."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.e2e_state import create
from support.nodes import Node, follower, poll, primary, wait_level, walcast
from support.writers import WILD, seen_from_outside, sql, writer

from walcast.errors import Unavailable
from walcast.scrub import Mismatch
from walcast.statedir import state_dir
from walcast_follower import replica_scrubber
from walcast_follower.apply.applier import Applier
from walcast_follower.replica_scrubber import ReplicaScrubber
from walcast_node.commands.status_facts import local_status

SOON_S = 20.0
PAGE_SIZE = 4096
MENDED = "copied from the primary"
OVERWRITE = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), sys.stdin.buffer.read(), int(sys.argv[2]))"
HASTY = "scrub_follower.py"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    subprocess.run([sys.executable, "-S", "-c", OVERWRITE, path, str(offset)], input=data, check=True)


def flip_a_byte(path: Path, offset: int) -> None:
    overwrite(path, offset, bytes([seen_from_outside(path)[offset] ^ 0x40]))


@contextmanager
def pair(
    tmp_path: Path, *, script: str | None = None, env: dict[str, str] | None = None
) -> Iterator[tuple[Node, Node]]:
    """Primary and follower, which has all there is in its database file."""
    db, replica = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create(db)
    with primary(db) as one, follower(replica, one.address, script=script, env=env) as other:
        wait_level(one.address, replica)
        yield one, other


def equal(node: Node, replica: Path) -> None:
    """By the pages themselves."""
    wait_level(node.address, replica)
    proof = walcast("verify", replica, "--primary", node.address)
    assert proof.returncode == 0, proof.stderr
    reader = sqlite3.connect(f"file:{replica}?mode=ro", uri=True)
    assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    reader.close()


def discarded(replica: Path) -> list[Path]:
    folder = state_dir(replica) / "discarded"
    return list(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("script", [None, HASTY], ids=["by its times", "by its pages"])
def test_one_flipped_byte_of_a_replica_is_mended(tmp_path: Path, script: str | None) -> None:
    replica = tmp_path / "edge" / "app.db"
    with pair(tmp_path, script=script) as (one, other):
        flip_a_byte(replica, 10 * PAGE_SIZE + 1000)
        other.wait_event(MENDED, 2, SOON_S)
        assert [event["pages"] for event in other.events(MENDED)][1] == 1
        equal(one, replica)
        assert discarded(replica) == [], "it cannot be what an app wrote"
        scrub = local_status(replica)["scrub"]
        assert scrub["mismatches"] >= 1
        assert poll(lambda: local_status(replica)["scrub"]["passes"] > scrub["passes"], SOON_S)


def test_a_file_copied_over_a_replica_is_mended_while_the_primary_writes(tmp_path: Path, seed: int) -> None:
    replica = tmp_path / "edge" / "app.db"
    db = tmp_path / "app.db"
    with pair(tmp_path) as (one, other):
        with sql(db) as app:
            app("INSERT INTO filler (body) SELECT randomblob(3000) FROM spread")  # pages that nobody writes again
        wait_level(one.address, replica)
        with sql(replica) as reader:
            assert reader("PRAGMA wal_checkpoint(PASSIVE)")[0][2] > 10
        with writer(db, pause_s=0.002, seed=seed, weights={"transfer": 1}) as busy:
            overwrite(replica, 45 * PAGE_SIZE, random.Random(seed).randbytes(10 * PAGE_SIZE))
            other.wait_event(MENDED, 2, SOON_S)
            busy.stop()
        equal(one, replica)


def test_a_page_that_the_wal_hides_is_mended_before_it_shows(tmp_path: Path) -> None:
    """Its frame was copied into the file, so no checkpoint would write it again."""
    replica = tmp_path / "edge" / "app.db"
    with pair(tmp_path) as (one, other):
        with sql(tmp_path / "app.db") as app:
            app("UPDATE spread SET body = randomblob(2500)")
            wait_level(one.address, replica)
            with sql(replica) as reader:
                assert reader("PRAGMA wal_checkpoint(PASSIVE)")[0][2] > 10
            app("UPDATE state SET commit_seq = commit_seq + 1")  # in the WAL alone: readers go by that
        wait_level(one.address, replica)
        body = seen_from_outside(replica)
        with sql(replica) as reader:
            blob = reader("SELECT hex(body) FROM spread WHERE id = 20")[0][0]
        flip_a_byte(replica, body.index(bytes.fromhex(blob)) + 100)
        other.wait_event(MENDED, 2, SOON_S)
        equal(one, replica)


@pytest.mark.slow
def test_a_replica_is_not_mended_without_need_while_everything_happens(tmp_path: Path, seed: int) -> None:
    replica = tmp_path / "edge" / "app.db"
    with pair(tmp_path, script=HASTY) as (one, other):
        with writer(tmp_path / "app.db", seed=seed, weights=WILD) as busy, sql(replica) as reader:
            start = local_status(replica)["scrub"]["passes"]
            poll(lambda: reader("PRAGMA wal_checkpoint(PASSIVE)") and False, 1.5, 0.05)
            busy.stop()
        equal(one, replica)
        facts = local_status(replica)["scrub"]
        assert facts["passes"] > start
        assert facts["mismatches"] == 0
        assert len(other.events(MENDED)) == 1


def test_a_blind_scrubber_mends_nothing(tmp_path: Path) -> None:
    """The tests above can fail."""
    replica = tmp_path / "edge" / "app.db"
    with pair(tmp_path, script=HASTY, env={"SCRUB_BLIND": "1"}) as (one, _):
        flip_a_byte(replica, 10 * PAGE_SIZE + 1000)
        passes = local_status(replica)["scrub"]["passes"]
        assert poll(lambda: local_status(replica)["scrub"]["passes"] > passes + 2, SOON_S)
        assert walcast("verify", replica, "--primary", one.address).returncode == 1


def test_a_look_at_a_replica_that_cannot_be_made_now_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "app.db")
    monkeypatch.setattr(replica_scrubber, "LOOK_S", 0.001)
    applier = Applier.open(tmp_path / "app.db", tmp_path)
    looks = 0

    def busy(_: object) -> list[Mismatch]:
        nonlocal looks
        looks += 1
        raise Unavailable("busy")

    async def run() -> None:
        scrubbing = ReplicaScrubber(applier, lambda: True, lambda _: None, 0)
        monkeypatch.setattr(applier, "differing", busy)
        scrubbing.start()
        async with asyncio.timeout(SOON_S):
            while looks < 3:
                os.utime(applier.path)
                await asyncio.sleep(0.001)
        await scrubbing.stop()

    try:
        asyncio.run(run())
    finally:
        applier.close()
