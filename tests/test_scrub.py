"""The scrubber's decisions: how fast to read, and whose a change of the database file's times is."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from support.e2e_state import create
from support.writers import AUTOCHECKPOINTS, WILD, sql, writer

from walcast.dbfiles import DatabaseFiles
from walcast.errors import ConfigError
from walcast.filewatch import FileWatch, Look, Traces, Wrote, who_wrote
from walcast.locks import try_lock, unlock
from walcast.scrub import DEFAULT_BYTES_PER_S, bytes_per_s
from walcast.walindex import LOCK_CHECKPOINT
from walcast_node.commands.options import scrub_bytes
from walcast_node.config.configuration import load_config

MIB = 1 << 20
GIB = 1 << 30
DAY_S = 86400


# How fast


@pytest.mark.parametrize("size", [4096, 100_000, 10 * MIB, 35 * MIB])
def test_a_small_database_is_read_every_five_minutes_and_no_oftener(size: int) -> None:
    assert size / bytes_per_s(size, DEFAULT_BYTES_PER_S) == pytest.approx(300)


@pytest.mark.parametrize("size", [80 * MIB, GIB, 20 * GIB, 100 * GIB, 330 * GIB])
def test_a_large_one_is_read_within_a_day(size: int) -> None:
    seconds = size / bytes_per_s(size, DEFAULT_BYTES_PER_S)
    assert 300 < seconds <= DAY_S * 1.001


def test_the_pace_never_falls_as_a_database_grows_and_never_exceeds_its_bound() -> None:
    paces = [bytes_per_s(1 << bits, DEFAULT_BYTES_PER_S) for bits in range(9, 50)]
    assert paces == sorted(paces)
    assert paces[-1] == DEFAULT_BYTES_PER_S
    assert max(bytes_per_s(1 << bits, 1000.0) for bits in range(9, 50)) == 1000.0


# Whose a change is


def traces(salt: int, backfill: int, attempted: int) -> Traces:
    return Traces(salt.to_bytes(8, "little"), backfill.to_bytes(4, "little"), attempted.to_bytes(4, "little"))


IDLE = traces(1, 5, 5)
OLD, NEW = (1, 1, 4096), (2, 2, 4096)


@pytest.mark.parametrize(
    ("last", "now", "expected"),
    [
        (Look(IDLE, OLD, IDLE), Look(IDLE, OLD, IDLE), False),
        (Look(IDLE, OLD, IDLE), Look(IDLE, NEW, IDLE), True),
        (Look(IDLE, OLD, IDLE), Look(traces(1, 9, 9), NEW, traces(1, 9, 9)), False),
        (Look(IDLE, OLD, IDLE), Look(traces(1, 5, 9), NEW, traces(1, 9, 9)), False),
        (Look(IDLE, OLD, IDLE), Look(traces(2, 0, 0), NEW, traces(2, 0, 0)), False),
        # It ended while the look before was under way, and wrote after the times were read.
        (Look(traces(1, 5, 9), OLD, traces(1, 9, 9)), Look(traces(1, 9, 9), NEW, traces(1, 9, 9)), False),
        # It ended between the times and the second reading of this look.
        (Look(IDLE, OLD, IDLE), Look(IDLE, NEW, traces(1, 9, 9)), False),
    ],
    ids=["quiet", "foreign", "checkpoint", "ending", "restart", "ended in the last look", "ends in this look"],
)
def test_times_that_change_beside_a_checkpoint_are_its_own(last: Look, now: Look, expected: bool) -> None:
    assert (who_wrote(last, now) is Wrote.SOMEBODY) is expected


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


@pytest.fixture
def files(db: Path) -> Iterator[DatabaseFiles]:
    connection = apsw.Connection(str(db))
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("UPDATE accounts SET balance = balance + 1")
    made = DatabaseFiles(db)
    yield made
    connection.close()
    made.close()


def somebody(watch: FileWatch) -> bool:
    return watch.look() is Wrote.SOMEBODY


def overwrite(db: Path, pgno: int, data: bytes) -> None:
    """Behind SQLite's back, by a process of its own: this one must not close the file."""
    pid = os.fork()
    if pid == 0:
        fd = os.open(db, os.O_WRONLY)
        os.pwrite(fd, data, (pgno - 1) * 4096)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_checkpoint_is_no_foreign_write_and_a_foreign_write_is_one(db: Path, files: DatabaseFiles) -> None:
    watch = FileWatch(files)
    with sql(db) as one:
        assert one("PRAGMA wal_checkpoint(PASSIVE)")[0][2] > 0
        assert not somebody(watch)
        time.sleep(0.01)  # the granularity of a file's times
        overwrite(db, 5, b"x")
        assert somebody(watch)
        assert not somebody(watch), "it is told once"
        for mode in ("FULL", "RESTART", "TRUNCATE"):
            one("UPDATE accounts SET balance = balance + 1")
            one(f"PRAGMA wal_checkpoint({mode})")
            assert not somebody(watch), mode


def test_times_that_are_set_back_are_noticed_too(db: Path, files: DatabaseFiles) -> None:
    watch, was = FileWatch(files), db.stat()
    overwrite(db, 5, b"x")
    os.utime(db, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert db.stat().st_mtime_ns == was.st_mtime_ns
    assert somebody(watch), "nobody can set back the time of the inode's change"


def test_while_a_checkpoint_runs_a_change_is_taken_for_its_own(db: Path, files: DatabaseFiles) -> None:
    """As one looks from outside: nBackfillAttempted is ahead, the lock is held, pages are written, nBackfill is not
    moved."""
    watch = FileWatch(files)
    os.pwrite(files.shm_fd, (1).to_bytes(4, "little"), 128)
    somebody(watch)
    overwrite(db, 5, b"x")
    other = os.open(f"{db}-shm", os.O_RDWR)
    assert try_lock(other, LOCK_CHECKPOINT)
    assert not somebody(watch)
    overwrite(db, 5, b"y")
    unlock(other, LOCK_CHECKPOINT)
    assert somebody(watch), "it failed, or is somebody else's: worth a look"


def alarms(db: Path, seed: int, seconds: float) -> tuple[int, int]:
    """Writers with every kind of checkpoint: how often was looked, and how often a change was not explained."""
    connection = apsw.Connection(str(db))
    connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
    made = DatabaseFiles(db)
    watch = FileWatch(made)
    rng = random.Random(seed)
    looks = wrong = 0
    weights = WILD | {"checkpoint": 30, "vacuum": 3}
    with (
        writer(db, seed=seed, weights=weights, autocheckpoint=AUTOCHECKPOINTS),
        writer(db, seed=seed + 1, weights=weights, autocheckpoint=AUTOCHECKPOINTS),
    ):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            looks, wrong = looks + 1, wrong + somebody(watch)
            time.sleep(rng.choice((0, 0, 0.0001, 0.001, 0.02)))
    connection.close()
    made.close()
    return looks, wrong


def test_checkpoints_and_vacuums_under_load_raise_no_alarm(db: Path, seed: int) -> None:
    looks, wrong = alarms(db, seed, 2.0)
    assert looks > 100
    assert wrong == 0


@pytest.mark.slow
def test_checkpoints_and_vacuums_for_a_minute_raise_no_alarm(db: Path, seed: int) -> None:
    looks, wrong = alarms(db, seed, 60.0)
    assert looks > 3000
    assert wrong == 0


# What it is told


@pytest.mark.parametrize(("said", "bytes_each_s"), [("4", 4 * MIB), ("0.5", MIB // 2), ("0", 0)])
def test_the_configuration_file_bounds_the_pace(tmp_path: Path, said: str, bytes_each_s: float) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text(f"scrub-mb-per-s: {said}\n")
    assert load_config(file).scrub_bytes_per_s == bytes_each_s
    assert scrub_bytes(None, bytes_each_s) == bytes_each_s
    assert scrub_bytes(3.0, bytes_each_s) == 3 * MIB, "a flag wins"


@pytest.mark.parametrize("said", ["-1", "fast", "inf", "nan"])
def test_a_pace_that_is_none_is_refused_with_its_line(tmp_path: Path, said: str) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text(f"listen: 127.0.0.1:0\nscrub-mb-per-s: {said}\n")
    with pytest.raises(ConfigError, match=r"walcast\.yml:2: "):
        load_config(file)
