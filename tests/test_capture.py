"""Capture against stock SQLite: whatever apps do, the log replayed is the database, byte for byte, commit for commit.

SQLite of this process is the primary's; the apps are other processes.
"""

from __future__ import annotations

import random
import statistics
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.e2e_oracle import entries, served
from support.e2e_state import TOTAL, create
from support.nodes import barrier, poll, primary
from support.writers import AUTOCHECKPOINTS, CHECKPOINTS, WILD, pause, sql, writer

from walcast.errors import ConfigError

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


def random_writers(path: Path, count: int, operations: int, seed: int, **options: object) -> int:
    """Several apps at once, until each has done its part; how many commits they made."""
    with ExitStack() as stack:
        common = {"operations": operations} | options
        apps = [stack.enter_context(writer(path, seed=seed + i, **common)) for i in range(count)]
        return sum(app.finish()["commits"] for app in apps)


@pytest.mark.parametrize("seeds", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_every_commit_of_several_wild_writers_is_captured(tmp_path: Path, seed: int, seeds: int) -> None:
    for i in range(seeds):
        rng = random.Random(seed + i)
        path = tmp_path / f"app{i}.db"
        create(path, page_size=rng.choice(PAGE_SIZES), seed=seed)
        with served(path) as app:
            commits = random_writers(
                path,
                3,
                180,
                seed + 10 * i,
                weights=WILD,
                autocheckpoint=AUTOCHECKPOINTS,
                cache_size=rng.choice((1, 10, -2000)),
                synchronous=rng.choice(("OFF", "NORMAL", "FULL")),
            )
            assert app.commits == commits
            app.verify()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_is_captured(tmp_path: Path, page_size: int, seed: int) -> None:
    path = tmp_path / "app.db"
    create(path, page_size=page_size)
    with served(path) as app:
        weights = {"transfer": 20, "grow": 20, "forget": 5, "vacuum": 2, "rollback": 3, "checkpoint": 3}
        commits = random_writers(path, 1, 60, seed, weights=weights, autocheckpoint=[100], cache_size=5)
        assert app.commits == commits
        app.verify()


@pytest.mark.parametrize("synchronous", ["OFF", "FULL"])
@pytest.mark.parametrize("autocheckpoint", [0, 1])
def test_any_synchronous_and_autocheckpoint_is_captured(
    db: Path, seed: int, synchronous: str, autocheckpoint: int
) -> None:
    with served(db) as app:
        commits = random_writers(db, 2, 150, seed, autocheckpoint=[autocheckpoint], synchronous=synchronous)
        assert app.commits == commits
        app.verify()


@pytest.mark.parametrize(
    ("pause_s", "commits", "bound_bytes"),
    [(0.002, 1500, 32 << 20), pytest.param(0.0, 200_000, 256 << 20, marks=pytest.mark.slow)],
)
def test_the_wal_stays_bounded_though_no_app_checkpoints(
    db: Path, seed: int, pause_s: float, commits: int, bound_bytes: int
) -> None:
    """Paced, and flat out: then how long it gets is a matter of luck with the write lock, but not for ever."""
    kind = "transfer" if pause_s else "small"
    options = {"weights": {kind: 1}, "autocheckpoint": [0], "synchronous": "OFF", "pause_s": pause_s}
    with primary(db) as node, writer(db, seed=seed, operations=commits, **options) as busy:
        wal, sizes = Path(f"{db}-wal"), [0]

        def done() -> bool:
            sizes.append(wal.stat().st_size)
            return busy.process.poll() is not None

        assert poll(done, 120.0)
        assert busy.finish()["commits"] == commits
        assert max(sizes) < bound_bytes < commits * 2 * 4096 * (4 if pause_s else 1)
        assert barrier(node.address).txid == commits + 1


# Checkpoints of the app


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_an_apps_checkpoint_gets_its_normal_answer_in_bounded_time(db: Path, mode: str) -> None:
    with served(db) as app, sql(db, timeout_s=2.0) as one:
        one("PRAGMA wal_autocheckpoint = 0")
        for i in range(5):
            one("INSERT INTO filler (body) VALUES (randomblob(5000))")
            [[busy, frames, done]] = one(f"PRAGMA wal_checkpoint({mode})")
            assert one.seconds < 2.0, f"round {i}"
            assert busy == 0, f"round {i}: a blocking checkpoint with a busy timeout must succeed"
            if mode in ("FULL", "RESTART"):
                assert frames == done
            if mode == "TRUNCATE":
                assert (frames, done) == (0, 0)
                assert Path(f"{db}-wal").stat().st_size == 0
        assert app.commits == 5
        app.verify()


def test_blocking_checkpoints_among_writers_are_held_up_for_a_moment_only(db: Path, seed: int) -> None:
    """They wait with the write lock in hand: what holds them up holds up every writer."""
    options = {"operations": 60, "weights": {"transfer": 80, "checkpoint": 20}, "synchronous": "FULL"}
    with served(db) as app, ExitStack() as stack:
        apps = [stack.enter_context(writer(db, seed=seed + i, **options)) for i in range(3)]
        facts = [one.finish() for one in apps]
        waited = [s for f in facts for mode in CHECKPOINTS[1:] for s in f["checkpoints"].get(mode, [])]
        assert statistics.median(waited) < 0.5
        assert max(waited) < 5.0
        assert app.commits == sum(f["commits"] for f in facts)
        app.verify()


def test_a_change_of_the_journal_mode_is_answered_and_changes_nothing(db: Path) -> None:
    with served(db) as app, sql(db, timeout_s=0.5) as one:
        one("INSERT INTO filler (body) VALUES (x'00')")
        assert "locked" in one.error("PRAGMA journal_mode = DELETE")
        assert one.seconds < 2.0
        assert one("PRAGMA journal_mode") == [["wal"]]
        one("INSERT INTO filler (body) VALUES (x'01')")
        assert app.commits == 2
        app.verify()


def test_a_rollback_journal_database_is_switched_to_wal_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "app.db"
    create(path, journal_mode="DELETE")
    caplog.set_level("INFO", "walcast")
    with served(path) as app, sql(path) as one:
        assert [r.getMessage() for r in caplog.records].count("switched to WAL mode") == 1
        assert one("PRAGMA journal_mode") == [["wal"]]
        one("INSERT INTO filler (body) VALUES (randomblob(9000))")
        assert app.commits == 1
        app.verify()


def test_a_database_in_use_in_rollback_mode_is_refused_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walcast_primary.capture.opening.SWITCH_TIMEOUT_MS", 200)
    path = tmp_path / "app.db"
    create(path, journal_mode="DELETE")
    with sql(path) as one:
        one("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError), served(path):
            pass
        one("ROLLBACK")
        assert one("PRAGMA journal_mode") == [["delete"]]


def test_nothing_is_written_to_the_apps_database(db: Path) -> None:
    before = db.read_bytes()
    with served(db) as app:
        for _ in range(3):
            app.restart()
        app.verify()
    assert db.read_bytes() == before


# What apps write


def test_vacuum_grows_and_shrinks_the_file(db: Path) -> None:
    with served(db) as app, sql(db) as one:
        for i in range(4):
            one(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)"
                " INSERT INTO filler (body) SELECT randomblob(3000) FROM n"
            )
            one(f"DELETE FROM filler WHERE id % 4 != {i}")
            one("VACUUM")
            if i % 2:
                one("PRAGMA wal_checkpoint(TRUNCATE)")
        one("DELETE FROM filler")
        one("VACUUM")
        assert app.commits == 14
        app.verify()


@pytest.mark.parametrize("mode", ["FULL", "INCREMENTAL"])
def test_auto_vacuum_is_captured(tmp_path: Path, mode: str, seed: int) -> None:
    path = tmp_path / "app.db"
    with sql(path) as one:
        one(f"PRAGMA auto_vacuum = {mode}; PRAGMA journal_mode = WAL; VACUUM;")
        one("CREATE TABLE t (id INTEGER PRIMARY KEY, body)")
    rng = random.Random(seed)
    with served(path) as app, sql(path) as one:
        assert one("PRAGMA auto_vacuum") == [[1 if mode == "FULL" else 2]]
        for _ in range(40):
            if rng.random() < 0.6:
                one("INSERT INTO t (body) VALUES (randomblob(?))", rng.randrange(30000))
            else:
                one("DELETE FROM t WHERE id % 3 = ?", rng.randrange(3))
            if mode == "INCREMENTAL" and rng.random() < 0.3:
                one(f"PRAGMA incremental_vacuum({rng.randrange(1, 20)})")
            if rng.random() < 0.1:
                one("PRAGMA wal_checkpoint(RESTART)")
        app.verify()


def test_without_rowid_fts5_and_big_blobs_are_captured(db: Path) -> None:
    with served(db) as app, sql(db) as one:
        one("CREATE TABLE pairs (a TEXT, b INTEGER, c BLOB, PRIMARY KEY (a, b)) WITHOUT ROWID")
        one("CREATE VIRTUAL TABLE words USING fts5(text)")
        for i in range(30):
            one("BEGIN; INSERT INTO pairs SELECT hex(randomblob(9)), %d, randomblob(500); COMMIT;" % i)  # noqa: UP031
            one("INSERT INTO words VALUES (?)", " ".join(f"word{i * j % 97}" for j in range(200)))
            one("DELETE FROM pairs WHERE b % 3 = 0 AND b < ?", i)
        one("INSERT INTO words (words) VALUES ('optimize')")
        one("INSERT INTO filler (body) VALUES (randomblob(3000000))")
        one("UPDATE filler SET body = zeroblob(2000000)")
        one("DELETE FROM filler")
        app.verify()


@pytest.mark.parametrize("megabytes", [4, 5, 30, pytest.param(400, marks=pytest.mark.slow)])
def test_a_transaction_larger_than_the_capture_buffer_is_one_commit(db: Path, megabytes: int) -> None:
    with served(db, log_bytes=1 << 30) as app, sql(db) as one:
        one("PRAGMA cache_size = 50")  # spills: the same page comes more than once
        one("INSERT INTO filler (body) VALUES (x'00')")
        one("BEGIN")
        for _ in range(megabytes):
            one("INSERT INTO filler (body) VALUES (randomblob(1000000))")
            one("UPDATE state SET commit_seq = commit_seq + 1")
        one("COMMIT")
        one("INSERT INTO filler (body) VALUES (x'01')")
        assert app.commits == 3
        app.verify()


@pytest.mark.parametrize("cache_size", [1, 100000])
def test_uncommitted_and_rolled_back_frames_are_not_published(db: Path, cache_size: int) -> None:
    with served(db) as app, sql(db) as one:
        wal = Path(f"{db}-wal")
        one(f"PRAGMA cache_size = {cache_size}")
        for i in range(5):
            one("BEGIN")
            one("INSERT INTO filler (body) VALUES (randomblob(600000))")
            one("UPDATE accounts SET balance = balance + 1")
            if cache_size == 1:
                assert wal.stat().st_size > 400000, "the pages are in the WAL already"
            assert app.commits == i
            one("ROLLBACK")
            assert app.commits == i
            one("UPDATE accounts SET balance = balance + 2")
            assert app.commits == i + 1
        app.verify()


def test_a_writer_killed_in_its_transaction_leaves_no_trace(db: Path, seed: int) -> None:
    rng = random.Random(seed)
    with served(db) as app:
        for i in range(4):
            with sql(db) as victim:
                victim("PRAGMA cache_size = 1")
                victim("BEGIN IMMEDIATE")
                victim("UPDATE accounts SET balance = 0")
                victim("INSERT INTO filler (body) VALUES (randomblob(?))", rng.randrange(300000))
                victim.kill()
            with sql(db) as other:
                assert app.commits == i
                other("UPDATE accounts SET balance = balance + 3 WHERE id % 2")
                assert app.commits == i + 1
        app.verify()


def test_writers_killed_at_random_moments_leave_whole_commits(db: Path, seed: int) -> None:
    rng = random.Random(seed)
    with served(db) as app, writer(db, seed=seed, weights=WILD, autocheckpoint=AUTOCHECKPOINTS) as survivor:
        for i in range(5):
            with writer(db, seed=seed + i, cache_size=1) as victim:
                pause(rng.random() * 0.3)
                victim.kill()
        survivor.stop()
        with sql(db) as one:
            assert one("SELECT sum(balance) FROM accounts") == [[TOTAL]]
        app.verify()


# The lock page


def grow_past_the_lock_page(path: Path) -> None:
    with sql(path) as one:
        one("PRAGMA page_size = 65536; PRAGMA journal_mode = WAL; VACUUM;")
        one("CREATE TABLE t (id INTEGER PRIMARY KEY, body)")
        one("PRAGMA wal_autocheckpoint = 100")
        for _ in range(34):
            one("INSERT INTO t (body) VALUES (zeroblob(31000000))")


@pytest.mark.slow
def test_a_database_grows_past_the_lock_page_and_shrinks_again(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    grow_past_the_lock_page(path)
    lock = (1 << 30) // 65536
    with served(path, log_bytes=1 << 30) as app, sql(path) as one:
        assert one("PRAGMA page_count")[0][0] < lock
        for i in range(5):
            one("INSERT INTO t (body) VALUES (randomblob(10000000))")
            one("INSERT INTO t (body) VALUES (?)", f"small {i}")
        assert one("PRAGMA page_count")[0][0] > lock
        one("UPDATE t SET body = randomblob(9000000) WHERE id > 35 AND length(body) > 1000")
        one("DELETE FROM t WHERE id > 30")
        one("PRAGMA wal_checkpoint(TRUNCATE)")
        one("INSERT INTO t (body) VALUES (randomblob(120000000))")
        assert app.commits == 13
        app.verify()


# Restarts


def test_a_restart_goes_on_in_the_same_wal_without_a_transaction(db: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "walcast")
    with served(db) as app, sql(db) as one:
        one("UPDATE accounts SET balance = balance + 1")
        before = app.position
        app.restart()
        assert app.position == before
        one("UPDATE accounts SET balance = balance + 1")
        assert app.position.txid == before.txid + 1
        assert "compared all pages" not in [r.getMessage() for r in caplog.records]
        app.verify()


def test_commits_made_in_the_same_wal_while_it_was_down_come_one_by_one(db: Path) -> None:
    with served(db) as app, sql(db) as one:
        one("PRAGMA wal_autocheckpoint = 0")
        one("UPDATE accounts SET balance = balance + 1")
        assert app.commits == 1
        app.stop()
        for _ in range(3):
            one("UPDATE accounts SET balance = balance + 1")
        app.restart()
        assert app.commits == 4
        app.verify()


@pytest.mark.parametrize("how", ["checkpoint", "vacuum", "last close"])
def test_what_was_written_while_it_was_down_comes_as_one_transaction(db: Path, how: str) -> None:
    with served(db) as app:
        with sql(db) as one:
            one("UPDATE accounts SET balance = balance + 1")
            assert app.commits == 1
            app.stop()
            one("INSERT INTO filler (body) VALUES (randomblob(50000))")
            one("INSERT INTO filler (body) VALUES (randomblob(50000))")
            if how == "checkpoint":
                one("PRAGMA wal_checkpoint(TRUNCATE)")
                one("DELETE FROM filler WHERE id = 1")
            elif how == "vacuum":
                one("DELETE FROM filler")
                one("VACUUM")
                one("PRAGMA wal_checkpoint(RESTART)")
                one("UPDATE accounts SET balance = balance + 1")
        app.restart()
        assert app.commits == 2
        with sql(db) as one:
            one("UPDATE accounts SET balance = balance + 1")
        assert app.commits == 3
        app.verify()


def test_entries_say_when_and_where_they_come_from(db: Path) -> None:
    with served(db) as app, sql(db) as one:
        one("UPDATE accounts SET balance = balance + 1")
        assert app.commits == 1
        [entry] = entries(app.database.log, app.base_position)
        header = entry.header()
        assert header.wal_offset == 32
        assert header.wal_size % (4096 + 24) == 0
        assert header.term == 1
        app.verify()
