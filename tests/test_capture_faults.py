"""What must end a primary, and what must not: files pulled from under it, kill -9 under load. Real processes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.e2e_oracle import replay, same, served
from support.e2e_state import create
from support.nodes import Node, barrier, poll, primary
from support.writers import AUTOCHECKPOINTS, WILD, checkpointed, pause, sql, writer

from walcast.errors import Stopped
from walcast_primary.transaction_log.transaction_log import TransactionLog


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


def ends_with_one_error_line(node: Node) -> str:
    """Exit code 1, the line; no traceback."""
    assert poll(lambda: not node.running, 20.0), "it goes on"
    assert node.wait() == 1
    assert all(line.startswith("{") for line in node.err.read_text().splitlines())
    [failed] = node.events("failed")
    assert "traceback" not in failed
    return str(failed["error"])


def replace_database(db: Path) -> None:
    other = db.with_name("other.db")
    create(other, seed=99)
    other.replace(db)


def truncate_database(db: Path) -> None:
    os.truncate(db, db.stat().st_size // 2 // 4096 * 4096)


@pytest.mark.parametrize(
    ("pull", "what"),
    [
        (replace_database, "app.db was replaced"),
        (Path.unlink, "app.db was removed"),
        (truncate_database, "was truncated"),
        (lambda db: Path(f"{db}-wal").unlink(), "app.db-wal was removed"),
        (lambda db: Path(f"{db}-shm").unlink(), "app.db-shm was removed"),
        (lambda db: db.rename(db.with_name("moved.db")), "app.db was removed"),
    ],
    ids=["replaced", "deleted", "truncated", "wal deleted", "shm deleted", "moved"],
)
def test_files_pulled_from_under_the_primary_end_it(db: Path, pull: Callable[[Path], None], what: str) -> None:
    with primary(db) as node:
        with sql(db) as one:
            one("UPDATE accounts SET balance = balance + 1")
            one("PRAGMA wal_checkpoint(TRUNCATE)")
            barrier(node.address)
            pause(0.3)  # one idle look, so that it knows the size
            pull(db)
        assert what in ends_with_one_error_line(node)


def test_a_wal_replaced_under_load_is_not_streamed(db: Path, tmp_path: Path) -> None:
    """Frames of an older WAL in the new one's place must not be taken for commits."""
    with primary(db) as node, writer(db, autocheckpoint=[0]) as busy:
        start = barrier(node.address)
        assert poll(lambda: barrier(node.address).txid > start.txid + 100)
        wal = Path(f"{db}-wal")
        shutil.copyfile(wal, tmp_path / "copy")
        (tmp_path / "copy").replace(wal)
        ends_with_one_error_line(node)
        busy.kill()


SWAP_THE_WAL_AND_COMMIT = """
import os, shutil, sqlite3, sys
wal = sys.argv[1] + "-wal"
shutil.copyfile(wal, wal + "2")
os.replace(wal + "2", wal)
sqlite3.connect(sys.argv[1], isolation_level=None).execute("UPDATE accounts SET balance = balance + 1")
"""


def test_frames_of_the_wals_last_round_are_not_taken_for_commits(db: Path) -> None:
    """The commit goes to another file; at its place in ours stand old frames."""
    with served(db) as app, sql(db) as one:
        one("PRAGMA wal_autocheckpoint = 0")
        for _ in range(5):
            one("INSERT INTO filler (body) VALUES (randomblob(20000))")
        assert app.commits == 5
        one("PRAGMA wal_checkpoint(RESTART)")
        one("UPDATE accounts SET balance = balance + 1")
        assert app.commits == 6
        before = app.database.log.position
        subprocess.run([sys.executable, "-c", SWAP_THE_WAL_AND_COMMIT, str(db)], check=True)
        with pytest.raises(Stopped, match=r"app\.db-wal was replaced"):
            assert app.position
        assert app.database.log.position == before


def test_a_file_that_vacuum_shrank_some_commits_ago_is_no_truncated_one(db: Path) -> None:
    with served(db) as app, sql(db) as one:
        one("INSERT INTO filler (body) VALUES (randomblob(500000))")
        one("PRAGMA wal_checkpoint(TRUNCATE)")
        pause(0.3)  # one idle look
        one("DELETE FROM filler")
        one("VACUUM")
        one("PRAGMA wal_checkpoint(TRUNCATE)")
        one("INSERT INTO filler (body) VALUES (randomblob(50000))")
        pause(0.3)
        one("UPDATE accounts SET balance = balance + 1")
        assert app.commits == 5
        app.verify()


def kill_rounds(db: Path, seed: int, rounds: int) -> None:
    """Kill the primary at random instants under load; the log, replayed over the first state, is the database."""
    rng = random.Random(seed)
    base = db.read_bytes()
    with primary(db, "--log-max-bytes", str(1 << 30)) as node:
        start = barrier(node.address)
        with (
            writer(db, seed=seed, weights=WILD, autocheckpoint=AUTOCHECKPOINTS, cache_size=10) as one,
            writer(db, seed=seed + 1, synchronous="FULL", pause_s=0.001) as two,
        ):
            for _ in range(rounds):
                pause(rng.random() * 0.5)
                node.kill()
                pause(rng.random() * 0.2 if rng.random() < 0.5 else 0.0)
                node.start()
                if rng.random() < 0.7:
                    node.ready()
            one.stop()
            two.stop()
        end = barrier(node.address)
        assert node.stop() == 0
    log = TransactionLog.open(db.with_name("app.db-walcast") / "log", max_bytes=1 << 30)
    assert log.position == end
    assert log.checksums is not None
    same(replay(base, log, start), checkpointed(db), 4096)
    log.close()


def test_a_primary_killed_at_random_under_load_loses_nothing(db: Path, seed: int) -> None:
    kill_rounds(db, seed, 3)


@pytest.mark.slow
@pytest.mark.parametrize("offset", range(5))
def test_a_primary_killed_at_random_many_times_loses_nothing(db: Path, seed: int, offset: int) -> None:
    kill_rounds(db, seed + offset, 40)
