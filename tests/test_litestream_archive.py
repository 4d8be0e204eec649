"""One archive, two programs: what walcast keeps Litestream restores; what Litestream wrote walcast goes on with."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.archiving import (
    LITESTREAM,
    archived,
    archiving,
    compact_now,
    levels,
    restored,
    restored_by_litestream,
)
from support.e2e_oracle import Served, replay, served
from support.e2e_state import create
from support.nodes import follower, poll, position_of, primary, wait_level, walcast
from support.s3 import counted_s3
from support.writers import checkpointed, sql

from walcast.archive import SNAPSHOT_LEVEL
from walcast.position import format_txid
from walcast.store import open_store
from walcast.store.directory import DirectoryStore
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

SEED = int(os.environ.get("WALCAST_TEST_SEED", "7"))


def change(app: Served, rng: random.Random) -> bytes:
    """Some commits; the database's bytes after them, by the dumb oracle."""
    with sql(app.path) as stock:
        for _ in range(rng.randint(1, 4)):
            stock("UPDATE accounts SET balance = balance + ?", rng.randint(1, 9))
        stock("INSERT INTO filler(body) VALUES (randomblob(?))", rng.choice([100, 5000, 40_000]))
        if rng.random() < 0.3:
            stock("DELETE FROM filler WHERE id % 2 = 0")
            stock("VACUUM")
    _ = app.position
    return replay(app.base, app.database.log, app.base_position)


def litestream_time(timestamp_ms: int) -> str:
    """For `-timestamp`, which Litestream takes as exclusive."""
    return datetime.fromtimestamp((timestamp_ms + 1) / 1000, UTC).isoformat(timespec="milliseconds")


ALWAYS, AT_LENGTH = [512, 4096, 65536], [1024, 2048, 8192, 16384, 32768]


@pytest.mark.parametrize("page_size", ALWAYS + [pytest.param(size, marks=pytest.mark.slow) for size in AT_LENGTH])
def test_litestream_restores_every_moment_that_walcast_does(tmp_path: Path, page_size: int) -> None:
    rng = random.Random(SEED + page_size)
    print(f"seed {SEED}")
    path, store = tmp_path / "app.db", DirectoryStore(tmp_path / "archive")
    create(path, page_size=page_size)
    moments: dict[int, bytes] = {}
    with served(path) as app:
        with archiving(app, store) as archiver:
            for turn in range(6):
                data = change(app, rng)
                assert archived(app, archiver)
                moments[archiver.txid] = data
                if turn in (1, 3):
                    compact_now(archiver)
        assert levels(store).keys() == {0, 1, 2, SNAPSHOT_LEVEL}
        # Once with the raw files, once with what retention leaves: then the grain is that of the compactions.
        check_moments(store, moments, tmp_path, rng)
        strict = ArchivePolicy(level_intervals_s=(3600.0, 7200.0), raw_retention_s=0.0)
        with archiving(app, store, strict) as archiver:
            assert archived(app, archiver)
            compact_now(archiver)
            assert poll(lambda: 0 not in levels(store))
        ends = {file.max_txid for file in levels(store)[1]}
        assert len(ends) == 3
        check_moments(store, {txid: data for txid, data in moments.items() if txid in ends}, tmp_path, rng)
        app.stop()
        assert restored_by_litestream(store, tmp_path / "theirs.db") == checkpointed(path) == moments[max(moments)]


def check_moments(store: DirectoryStore, moments: dict[int, bytes], folder: Path, rng: random.Random) -> None:
    """Both programs restore each of them: by TXID; some by time, too."""
    times = {file.max_txid: file.timestamp_ms for files in levels(store).values() for file in files}
    some = rng.sample(sorted(moments)[:-1], 2)  # by time Litestream cannot be asked for the newest one
    for txid, data in moments.items():
        assert restored(store, folder / "ours.db", txid=txid) == data
        if txid in some:
            assert restored_by_litestream(store, folder / "theirs.db", "-txid", format_txid(txid)) == data
            assert restored(store, folder / "ours.db", timestamp_ms=times[txid]) == data
            when = litestream_time(times[txid])
            assert restored_by_litestream(store, folder / "theirs.db", "-timestamp", when) == data


@pytest.mark.slow
def test_past_one_gibibyte_an_archive_of_levels_is_restored_by_both(tmp_path: Path) -> None:
    path, store = tmp_path / "app.db", DirectoryStore(tmp_path / "archive")
    create(path, page_size=65536)
    with served(path, log_bytes=4 << 30) as app:
        with archiving(app, store) as archiver:
            for _ in range(3):
                with sql(path, 300.0) as stock:
                    stock(
                        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) "
                        "INSERT INTO filler(body) SELECT zeroblob(99000) || randomblob(1000) FROM n"
                    )
                assert archived(app, archiver)
                compact_now(archiver)
        app.stop()
        expected = checkpointed(path)
    assert len(expected) > 1 << 30
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


# The other way


@contextmanager
def litestream_replicates(db: Path, url: str, env: dict[str, str]) -> Iterator[None]:
    """The real Litestream, until the end of the block."""
    command = [str(LITESTREAM), "replicate", str(db), url]
    said = db.with_suffix(".litestream")
    with said.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            print(said.read_text()[-2000:])


def test_a_primary_goes_on_with_litestreams_archive_and_litestream_restores_it(tmp_path: Path) -> None:
    db, edge = tmp_path / "p" / "app.db", tmp_path / "f" / "app.db"
    db.parent.mkdir()
    create(db)
    with counted_s3(tmp_path / "s3") as server:
        env, url = server.environment(), server.url("app")
        with open_store(server.spec("app")) as store:
            with litestream_replicates(db, url, env), sql(db) as stock:
                for _ in range(3):
                    stock("UPDATE accounts SET balance = balance + 1")
                    txid = max((f.max_txid for files in levels(store).values() for f in files), default=0)
                    assert poll(lambda txid=txid: any(f.max_txid > txid for f in levels(store).get(0, [])))
            theirs = max(f.max_txid for files in levels(store).values() for f in files)
            before = checkpointed(db)
            assert restored(store, tmp_path / "ours.db") == before
            assert walcast("ls", url, env=env).returncode == 0
            done = walcast("verify", url, env=env)
            assert done.returncode == 0, done.stdout + done.stderr
            with primary(db, url, env=env) as node:
                with follower(edge, node.address, "--archive", url, env=env) as copy:
                    assert "bootstrapped from the archive" in copy.err.read_text()
                    wait_level(node.address, edge)
                    with sql(db) as stock:
                        for _ in range(3):
                            stock("UPDATE accounts SET balance = balance + 1")
                    wait_level(node.address, edge)
                goal = position_of(edge).txid
                assert goal > theirs
                assert poll(lambda: max(f.max_txid for fs in levels(store).values() for f in fs) >= goal)
            expected = checkpointed(db)
            assert expected != before
            assert checkpointed(edge) == expected
            assert restored(store, tmp_path / "ours.db") == expected
            assert restored_by_litestream(store, tmp_path / "theirs.db", env=env) == expected
            # What Litestream wrote is still restorable, moment by moment.
            assert restored(store, tmp_path / "ours.db", txid=theirs) == before
            done = walcast("verify", url, env=env)
            assert done.returncode == 0, done.stdout + done.stderr


def test_compaction_goes_on_over_the_files_that_litestream_wrote(tmp_path: Path) -> None:
    db, store = tmp_path / "app.db", DirectoryStore(tmp_path / "archive")
    create(db)
    with litestream_replicates(db, store.url, dict(os.environ)), sql(db) as stock:
        for _ in range(3):
            before = len(levels(store).get(0, []))
            stock("UPDATE accounts SET balance = balance + 1")
            assert poll(lambda before=before: len(levels(store).get(0, [])) > before)
    theirs = max(file.max_txid for file in levels(store)[0])
    with served(db) as app:
        with archiving(app, store) as archiver:
            with sql(db) as stock:
                stock("UPDATE accounts SET balance = balance + 1")
            assert archived(app, archiver)
            compact_now(archiver)
            compact_now(archiver)
        merged = levels(store)[1]
        assert any(file.min_txid <= theirs <= file.max_txid for file in merged)
        assert not any(file.min_txid <= theirs and file.max_txid > theirs for file in merged), "two histories stay two"
        app.stop()
        expected = checkpointed(db)
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected
