"""A database that a power cut left torn, as `synchronous=OFF` allows: no whole state, and perhaps no schema."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from support.crash_images import PAGE_SIZE, Machine, copy_files, machine, newest_row, set_boot
from support.nodes import poll

from walcast.checksum import PageChecksums
from walcast.dbfiles import PageReader
from walcast.discarded import list_discarded
from walcast.errors import ConfigError, Unavailable
from walcast.position import Position
from walcast.statedir import state_dir
from walcast.wal import frame_offset
from walcast_primary.database import Database
from walcast_primary.recovery import redo

ROWS = 30


@contextmanager
def served(image: Path) -> Iterator[Database]:
    """The primary, started again after the machine was."""
    set_boot(image, "another start")
    database = Database(image, "app")
    try:
        database.start()
        database.loop.barrier().result(10)
        yield database
    finally:
        database.stop()


def assert_whole(image: Path, database: Database) -> None:
    """It has every row, as SQLite sees it, and is what the log says."""
    assert newest_row(image) == ROWS
    with PageReader(database.files, database._reader) as reader:
        now = PageChecksums.scan(database.page_size, reader.chunks())
    assert now.database == database.log.position.checksum
    assert list_discarded(image) == []


def assert_kept_aside(image: Path, position: Position) -> None:
    """What the log has, up to `position`, is in `discarded/` once the primary has started on what the apps wrote."""
    with served(image) as database:
        assert database.log.position.txid > position.txid
    [kept] = list_discarded(image)
    assert kept.max_txid == position.txid
    assert kept.max_txid - kept.min_txid + 1 >= ROWS


def grow(app: Machine) -> None:
    """Rows on many pages, all in the log."""
    for _ in range(ROWS):
        app.commit(filler=2000)
        app.captured()


def restart_wal(app: Machine) -> None:
    """By the app's own checkpoint and a commit."""

    def copied_back() -> bool:
        _, frames, copied = app.app.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()[0]
        return bool(frames == copied and app.database.loop._pace._place[1:] == (frames, True))  # at read lock 0

    assert poll(copied_back, 10.0), "the WAL is not copied back"
    app.commit()
    app.captured()
    assert app.frames < 10


def a_minute_later(image: Path) -> None:
    """What was written last was written after the machine had come up again."""
    for file in image.parent.glob("app.db*"):
        if file.is_file():
            os.utime(file, (time.time() + 60, time.time() + 60))


def tear(image: Path, pgno: int, data: bytes = bytes(PAGE_SIZE - 100), at: int = 100) -> None:
    """Overwrite a part of a page."""
    with image.open("r+b") as file:
        file.seek((pgno - 1) * PAGE_SIZE + at)
        file.write(data)


@pytest.mark.parametrize("how", ["schema", "short"])
def test_a_database_that_sqlite_cannot_open_is_mended_from_the_log(tmp_path: Path, how: str) -> None:
    with machine(tmp_path / "m") as app:
        grow(app)
        app.photograph(tmp_path / "full")
        image = app.power_cut(tmp_path / "cut", photograph=tmp_path / "full")
    with apsw.Connection(str(image)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    if how == "schema":
        tear(image, 1)
    else:
        with image.open("r+b") as file:
            file.truncate(6 * PAGE_SIZE)
    with pytest.raises(apsw.CorruptError):
        apsw.Connection(str(image)).execute("SELECT * FROM newest").fetchall()
    with served(image) as database:
        assert_whole(image, database)


def test_a_torn_schema_that_no_log_can_mend_is_refused_and_not_published(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        grow(app)
        image = app.power_cut(tmp_path / "cut")
    with apsw.Connection(str(image)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    tear(image, 1)
    shutil.rmtree(state_dir(image) / "log")
    database = Database(image, "app")
    try:
        with pytest.raises(ConfigError, match="malformed"):
            database.start()
        assert not database.log.position
    finally:
        database.stop()


@pytest.mark.parametrize("lost_frames", [0, 1])
def test_pages_that_a_checkpoint_lost_are_mended_although_the_wal_goes_on(tmp_path: Path, lost_frames: int) -> None:
    """The WAL restarted behind a checkpoint that was not synced: the WAL is there, to its end or nearly, and the file
    is older."""
    with machine(tmp_path / "m") as app:
        app.commit(3, filler=2000)
        app.captured()
        app.photograph(tmp_path / "older")
        grow(app)

        restart_wal(app)
        app.commit()
        app.captured()
        image = app.power_cut(tmp_path / "cut", frames=app.frames - lost_frames)
    with (tmp_path / "older" / "app.db").open("rb") as file:
        older = file.read()
    tear(image, 1, older, at=0)
    with served(image) as database:
        assert newest_row(image) == ROWS + 5
        with PageReader(database.files, database._reader) as reader:
            now = PageChecksums.scan(database.page_size, reader.chunks())
        assert now.database == database.log.position.checksum


def test_a_wal_whose_old_beginning_came_back_hides_nothing(tmp_path: Path) -> None:
    """It had restarted, but its header was not synced: what it had before hides pages that the file has newer, and the
    log, which began later, does not have."""
    with machine(tmp_path / "m") as app:
        app.commit(10, filler=2000)
        app.captured()
        app.photograph(tmp_path / "older")
        app.commit(ROWS - 13, filler=2000)
        app.captured()
        restart_wal(app)
        app.database.loop.skip_to(app.database.log.position.txid + 10)
        app.commit(2)
        app.captured()
        image = app.power_cut(tmp_path / "cut")
    copy_files(tmp_path / "older", tmp_path / "cut", "app.db-wal")
    with served(image) as database:
        assert_whole(image, database)


@pytest.mark.parametrize("commits_before", [0, 5])
def test_what_left_no_trace_before_an_app_wrote_is_kept_aside(tmp_path: Path, commits_before: int) -> None:
    """The WAL went with the power, then an app wrote: no page tells that there was more, but the log has it."""
    with machine(tmp_path / "m") as app:
        for _ in range(commits_before):
            app.commit()
            app.captured()
        app.photograph(tmp_path / "older")
        app.commit(ROWS)
        app.captured()
        position = app.database.log.position
        image = app.power_cut(tmp_path / "cut", photograph=tmp_path / "older")
    for text in ("PRAGMA wal_checkpoint(TRUNCATE)", "UPDATE newest SET n = 1000", "DELETE FROM rows"):
        other = apsw.Connection(str(image))  # its close removes the WAL
        other.execute(text).fetchall()
        other.close()
    a_minute_later(image)
    assert_kept_aside(image, position)


def test_of_a_torn_database_that_was_written_to_all_is_kept_that_some_page_lacks(tmp_path: Path) -> None:
    """A page that was last written in the middle came to the disk, the others are as they were before the log began."""
    with machine(tmp_path / "m") as app:
        app.app.execute("CREATE TABLE seldom(x)")
        app.captured()
        app.database.loop.skip_to(100)  # the log begins here
        app.photograph(tmp_path / "older")
        app.commit(ROWS // 2)
        app.app.execute("INSERT INTO seldom VALUES (1)")
        app.captured()
        app.photograph(tmp_path / "middle")
        app.commit(ROWS // 2)
        app.captured()
        position = app.database.log.position
        image = app.power_cut(tmp_path / "cut", photograph=tmp_path / "older")
    for path, text in ((tmp_path / "middle" / "app.db", "SELECT * FROM newest"), (image, "CREATE TABLE of_its_own(x)")):
        other = apsw.Connection(str(path))
        other.execute(text).fetchall()
        other.close()  # copies the WAL back, and removes it
    middle = (tmp_path / "middle" / "app.db").read_bytes()
    tear(image, 4, middle[3 * PAGE_SIZE : 4 * PAGE_SIZE], at=0)
    a_minute_later(image)
    assert_kept_aside(image, position)


@pytest.mark.parametrize("removed", [False, True])
def test_what_apps_wrote_behind_the_end_of_the_log_is_no_loss(tmp_path: Path, removed: bool) -> None:
    """The machine was started again, nothing was lost, and an app wrote first."""
    with machine(tmp_path / "m") as app:
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut")
    kept_open = apsw.Connection(str(image))
    kept_open.execute("CREATE TABLE of_its_own(x)")
    a_minute_later(image)
    if removed:
        kept_open.close()
    with served(image):
        assert newest_row(image) == ROWS
    kept_open.close()
    assert list_discarded(image) == []


def test_commits_in_a_wal_that_began_after_the_log_ends_are_no_loss(tmp_path: Path) -> None:
    """The WAL restarted, and the power went before what was committed then was captured: all pages of the log's last
    entry are newer now."""
    with machine(tmp_path / "m") as app:
        app.commit(ROWS - 1, filler=2000)
        app.captured()
        app.commit()
        app.captured()
        copy_files(app.folder, tmp_path / "before", "app.db-walcast")
        restart_wal(app)
        image = app.power_cut(tmp_path / "cut")
    shutil.rmtree(state_dir(image))
    copy_files(tmp_path / "before", tmp_path / "cut", "app.db-walcast")
    with served(image):
        assert newest_row(image) == ROWS + 1
    assert list_discarded(image) == []


def test_a_replay_that_was_cut_off_before_it_was_noted_is_known_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(capture: object, index: object) -> None:
        raise OSError("the power is gone")

    with machine(tmp_path / "m") as app:
        start = app.frames
        app.commit(ROWS - 3)
        app.captured()
        image = app.power_cut(tmp_path / "cut", frames=start + 2)
    set_boot(image, "another start")
    monkeypatch.setattr(redo, "note_place", cut_off)
    with pytest.raises(Unavailable), served(image):
        pass
    monkeypatch.undo()
    keeps_wal = apsw.Connection(str(image))
    keeps_wal.execute("SELECT * FROM newest").fetchall()
    with served(image) as database:
        header = database.files.index_header()
        assert header is not None
        for _ in range(3):
            keeps_wal.execute("INSERT INTO rows SELECT n + 1, NULL FROM newest")
            keeps_wal.execute("UPDATE newest SET n = n + 1")
            database.loop.barrier().result(10)
        again = tmp_path / "again"
        copy_files(image.parent, again, "app.db", "app.db-wal", "app.db-walcast")
    keeps_wal.close()
    with (again / "app.db-wal").open("r+b") as wal:
        wal.truncate(frame_offset(header.mx_frame + 1, PAGE_SIZE))
    with served(again / "app.db") as database:
        assert_whole(again / "app.db", database)
