"""What something other than SQLite writes to a primary's database is noticed, published if the database is whole, and
never published if it is damaged. Real SQLite in other processes, `cp` and single bytes behind its back."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.e2e_oracle import Served, replay, served
from support.e2e_state import create
from support.nodes import barrier, follower, poll, position_of, primary, walcast
from support.writers import AUTOCHECKPOINTS, WILD, Child, pause, seen_from_outside, sql, writer

from walcast import scrub
from walcast.errors import Stopped
from walcast.filewatch import FileWatch, Wrote
from walcast.wal import FRAME_HEADER_SIZE, frame_offset
from walcast_primary.recovery.damage import Damaged, read_note

SOON_S = 10.0
AT_ONCE_S = 2.0
PAGE_SIZE = 4096
COMMIT = "UPDATE accounts SET balance = balance + 1"

# In another process, since this one must not open and close the files itself; and in place, as `cp` and `dd` do it.
OVERWRITE = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), sys.stdin.buffer.read(), int(sys.argv[2]))"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    subprocess.run([sys.executable, "-S", "-c", OVERWRITE, path, str(offset)], input=data, check=True)


def flip_a_byte(path: Path, offset: int) -> None:
    overwrite(path, offset, bytes([seen_from_outside(path)[offset] ^ 0x40]))


def copy_over(backup: Path, db: Path) -> None:
    subprocess.run(["cp", backup, db], check=True)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    with sqlite3.connect(path) as one:
        one.execute("INSERT INTO filler (body) SELECT randomblob(3000) FROM spread")
    one.close()
    return path


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes one after the other."""
    for name in ("FIRST_S", "LEAST_PASS_S", "AGAIN_S", "AGAIN_MOST_S", "RETRY_S"):
        monkeypatch.setattr(scrub, name, 0.05)


@pytest.fixture
def again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something was found, passes follow each other soon, until one finds nothing."""
    for name in ("AGAIN_S", "AGAIN_MOST_S"):
        monkeypatch.setattr(scrub, name, 0.05)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times say nothing: as after `touch -r` on a file system whose inode changes have no time."""
    monkeypatch.setattr(FileWatch, "look", lambda self: Wrote.NOBODY)


@pytest.fixture
def app(db: Path) -> Iterator[Served]:
    with served(db) as made:
        yield made


def noticed(app: Served, seconds: float = SOON_S) -> bool:
    database = app.database
    return bool(poll(lambda: database.scrubber.trouble or database.loop.failure, seconds))


def clean(app: Served) -> bool:
    return bool(poll(lambda: app.database.scrubber.trouble is None, SOON_S))


def page_of_filler(db: Path) -> int:
    """A page that is all one row's bytes: a flipped byte there breaks no tree."""
    data = seen_from_outside(db)
    with sqlite3.connect(f"file:{db}?mode=ro", uri=True) as one:
        body = one.execute("SELECT body FROM filler ORDER BY id DESC LIMIT 1").fetchone()[0]
    one.close()
    return data.index(body[100:200]) // PAGE_SIZE + 1


def settled(app: Served, db: Path) -> None:
    """All commits captured, all of the WAL in the file, the WAL empty, and one idle look at the file."""
    with sql(db) as one:
        assert app.position
        assert poll(lambda: one("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0, SOON_S, 0.05)
    assert app.position
    pause(0.3)


# At once, by the times


def test_a_backup_copied_over_the_database_of_a_writing_app_is_noticed_at_once(
    db: Path, tmp_path: Path, again_soon: None
) -> None:
    backup = tmp_path / "backup.db"
    copy_over(db, backup)
    with served(db) as app, writer(db, pause_s=0.001) as busy:
        assert poll(lambda: app.commits > 300)
        copy_over(backup, db)
        began = time.monotonic()
        assert noticed(app, AT_ONCE_S), "it goes unnoticed"
        print(f"noticed after {time.monotonic() - began:.2f} s")
        busy.kill()
        # Whatever became of the primary's file: what was published up to then is whole, or is the file.
        if app.database.loop.failure is None:
            settled(app, db)  # the WAL hides no page of the file any more
        if app.database.loop.failure is None and clean(app):
            app.verify()
        else:
            assert isinstance(app.database.loop.failure, Stopped)
            (tmp_path / "published.db").write_bytes(replay(app.base, app.database.log, app.base_position))
            with sqlite3.connect(tmp_path / "published.db") as one:
                assert one.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            one.close()


def test_a_whole_backup_in_its_place_is_published_loudly(app: Served, db: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with sql(db) as one:
        one(COMMIT)
        settled(app, db)
        copy_over(db, backup)
        one("UPDATE spread SET stamp = stamp + 1")
        one("PRAGMA wal_checkpoint(TRUNCATE)")
    before = app.position
    copy_over(backup, db)
    assert noticed(app, AT_ONCE_S)
    assert app.database.loop.failure is None
    assert "Restart the app" in str(app.database.scrubber.trouble)
    assert poll(lambda: app.database.log.position.txid == before.txid + 1, SOON_S)
    assert app.database.scrubber.progress.mismatches > 10
    app.verify()


def test_a_changed_time_alone_is_no_trouble(app: Served, db: Path) -> None:
    before = app.position
    passes = app.database.scrubber.progress.passes
    subprocess.run(["touch", db], check=True)
    assert poll(lambda: app.database.scrubber.progress.passes > passes, SOON_S), "no pass was made"
    assert app.database.scrubber.trouble is None
    assert app.position == before


def test_a_copy_of_the_very_same_bytes_is_no_trouble(app: Served, db: Path, tmp_path: Path) -> None:
    settled(app, db)
    copy_over(db, tmp_path / "same.db")
    before, passes = app.position, app.database.scrubber.progress.passes
    copy_over(tmp_path / "same.db", db)  # empties the file first
    assert poll(lambda: app.database.scrubber.progress.passes > passes, SOON_S)
    assert poll(lambda: not app.database.loop.foreign.found, SOON_S)
    assert (app.position, app.database.loop.failure) == (before, None)
    app.verify()


# Damage


def damage(db: Path) -> bytes:
    """The inner half of the file is another's; the bytes that were there."""
    data = seen_from_outside(db)
    start, size = 2 * PAGE_SIZE, len(data) // 2 // PAGE_SIZE * PAGE_SIZE
    overwrite(db, start, random.Random(5).randbytes(size)[: len(data) - start])
    return data[start : start + size]


def test_a_damaged_database_is_not_published_and_says_what_to_do(app: Served, db: Path) -> None:
    settled(app, db)
    before = app.position
    damage(db)
    assert poll(lambda: app.database.loop.failure, SOON_S)
    failure = app.database.loop.failure
    assert isinstance(failure, Damaged)
    assert failure.note.good_ms > 0
    for said in ("--timestamp 20", f"-o {db}", "is damaged"):
        assert said in str(failure)
    assert app.database.log.position == before


def test_a_primary_of_a_damaged_database_starts_only_once_it_is_whole_again(app: Served, db: Path) -> None:
    with sql(db) as one:
        one(COMMIT)
    settled(app, db)
    before = app.position
    was = damage(db)
    assert poll(lambda: app.database.loop.failure, SOON_S)
    app.stop()
    with pytest.raises(Damaged):
        app.restart()
    app.stopped = False
    app.stop()
    assert read_note(app.database.state.path) is not None
    overwrite(db, 2 * PAGE_SIZE, was)
    app.restart()
    assert app.position == before
    assert read_note(app.database.state.path) is None
    app.verify()


def test_a_follower_keeps_the_last_good_state_when_the_primarys_is_damaged(db: Path, tmp_path: Path) -> None:
    replica = tmp_path / "edge" / "app.db"
    with primary(db) as node, follower(replica, node.address) as edge:
        with sql(db) as one:
            one(COMMIT)
            assert poll(lambda: one("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0, SOON_S, 0.05)
        at = barrier(node.address)
        assert poll(lambda: position_of(replica) == at)
        damage(db)
        assert poll(lambda: not node.running, SOON_S)
        assert node.wait() == 1
        edge.wait_event("trying again")
        with sqlite3.connect(f"file:{replica}?mode=ro", uri=True) as one_reader:
            assert one_reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        one_reader.close()
        assert position_of(replica) == at
        again = walcast("primary", db, "--listen", "127.0.0.1:0")
        assert again.returncode == 1
        assert "is damaged" in again.stderr


# Slowly, by the pages


def test_a_backup_whose_times_say_nothing_is_found_by_the_scrubber(
    db: Path, tmp_path: Path, hasty: None, blind: None
) -> None:
    backup = tmp_path / "backup.db"
    copy_over(db, backup)
    with served(db) as app:
        with sql(db) as one:
            one("UPDATE spread SET stamp = stamp + 1")
        settled(app, db)
        before = app.position
        overwrite(db, 0, backup.read_bytes())
        assert noticed(app), "the scrubber does not see it"
        assert app.database.loop.failure is None
        assert poll(lambda: app.database.log.position.txid > before.txid, SOON_S)
        assert clean(app)
        app.verify()


def test_one_rotten_byte_is_found_and_published(db: Path, hasty: None, blind: None) -> None:
    with served(db) as app:
        settled(app, db)
        pgno = page_of_filler(db)
        flip_a_byte(db, pgno * PAGE_SIZE - 100)
        assert noticed(app)
        assert f"1 pages ({pgno})" in str(app.database.scrubber.trouble)
        assert clean(app)
        assert app.database.log.last is not None
        assert [page.pgno for page in app.database.log.last.pages()] == [pgno]
        app.verify()


def test_a_rotten_frame_of_the_wal_is_found(db: Path, hasty: None) -> None:
    with served(db) as app, sql(db) as one:
        settled(app, db)
        one("PRAGMA wal_autocheckpoint = 0")
        one("INSERT INTO filler (body) VALUES (zeroblob(50000))")
        before = app.position
        flip_a_byte(Path(f"{db}-wal"), frame_offset(8, PAGE_SIZE) + FRAME_HEADER_SIZE + 2000)
        assert noticed(app)
        assert poll(lambda: app.database.log.position.txid > before.txid, SOON_S)
        assert app.database.loop.failure is None


def test_a_page_that_the_wal_still_hides_is_found_before_it_shows(db: Path, hasty: None) -> None:
    """Its frame was copied into the file, so no checkpoint will write it again, and readers still take the frame."""
    with served(db) as app, sql(db) as one:
        settled(app, db)
        one("PRAGMA wal_autocheckpoint = 0")
        one("UPDATE filler SET body = randomblob(3000)")
        at = app.position
        assert poll(lambda: one("PRAGMA wal_checkpoint(PASSIVE)")[0][2] > 10, SOON_S, 0.05)
        one("UPDATE state SET commit_seq = commit_seq + 1")  # not copied: readers go by the WAL
        assert app.position.txid == at.txid + 1
        pgno = page_of_filler(db)
        flip_a_byte(db, pgno * PAGE_SIZE - 100)
        assert noticed(app, AT_ONCE_S)
        assert app.position.txid == at.txid + 1, "nothing shows yet"
        settled(app, db)
        assert poll(lambda: app.position.txid > at.txid + 1, SOON_S)
        assert clean(app)
        app.verify()


# No false alarm


def test_pages_of_commits_that_are_not_captured_yet_are_nobodys_fault(
    app: Served, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.database.loop._capture, "capture", lambda: 0)
    everything = range(1, 200)
    with sql(db) as one:
        one("PRAGMA wal_autocheckpoint = 0")
        for change in (COMMIT, "DELETE FROM filler", "VACUUM", "INSERT INTO filler (body) VALUES (randomblob(90000))"):
            one(change)
            assert app.database.loop.foreign._examine(everything) == [], change
            assert app.database.scrubber.step() > 0
    assert app.database.scrubber.trouble is None


def scrub_under_load(db: Path, seed: int, seconds: float) -> None:
    with served(db, log_bytes=1 << 30) as app, ExitStack() as stack:
        busy: dict[int, Child] = {}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for number in (0, 1):
                # Its own checkpoints may lock the other one out until that gives up.
                if number not in busy or busy[number].process.poll() is not None:
                    seed += 1
                    made = writer(db, seed=seed, weights=WILD, autocheckpoint=AUTOCHECKPOINTS, pause_s=0.001 * number)
                    busy[number] = stack.enter_context(made)
            assert app.database.scrubber.trouble is None
            app.database.scrubber.suspect()  # fast passes all the time
            time.sleep(0.01)
        for child in busy.values():
            child.kill()
        assert poll(lambda: app.database.scrubber.progress.passes > 2, SOON_S)
        assert app.database.scrubber.trouble is None
        assert app.database.scrubber.progress.mismatches == 0
        assert not (app.database.state.path / "damaged").exists()
        print(f"{app.database.scrubber.progress} over {app.commits} commits")
        app.verify()


def test_a_scrubber_under_load_raises_no_alarm(
    db: Path, seed: int, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "CALM_S", 0.0)
    monkeypatch.setattr(scrub, "CALM_PASSES", 0)
    scrub_under_load(db, seed, 3.0)


@pytest.mark.slow
def test_a_scrubber_under_load_for_a_minute_raises_no_alarm(
    db: Path, seed: int, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "CALM_S", 0.0)
    monkeypatch.setattr(scrub, "CALM_PASSES", 0)
    scrub_under_load(db, seed, 60.0)


def test_a_scrubber_that_is_switched_off_still_looks_when_the_times_say_so(db: Path) -> None:
    with served(db, scrub_bytes_per_s=0) as app:
        settled(app, db)
        flip_a_byte(db, page_of_filler(db) * PAGE_SIZE - 100)
        assert noticed(app, SOON_S)
        app.verify()
