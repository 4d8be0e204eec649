"""A primary whose database a power cut took back: the log is replayed into it, or what it has is kept aside.

Power cuts on a real disk are in `test_power_cuts`; here every state that one may leave is made by hand.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from support.crash_images import PAGE_SIZE, machine, newest_row, set_boot

from walcast.checksum import PageChecksums
from walcast.dbfiles import PageReader
from walcast.discarded import list_discarded
from walcast.errors import DiskFull, Unavailable
from walcast.position import Position
from walcast.statedir import state_dir
from walcast.wal_writer import WalWriter
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.position_journal import Journal
from walcast_node.failover.role_changes import finish_log
from walcast_primary.capture import capture_thread
from walcast_primary.database import Database
from walcast_primary.recovery import boot, redo
from walcast_primary.recovery.boot import Boot, read_boot, write_boot
from walcast_primary.recovery.damage import Note, read_note, write_note
from walcast_primary.recovery.origin import Continues, TakenBack, WrittenOn
from walcast_primary.recovery.redo import Found, Way, decide
from walcast_primary.transaction_log.transaction_log import TransactionLog

ROWS = 12


@contextmanager
def served(image: Path) -> Iterator[Database]:
    """The primary, started again."""
    database = Database(image, "app")
    try:
        database.start()
        database.loop.barrier().result(10)
        yield database
    finally:
        database.stop()


def assert_log_is_database(database: Database) -> None:
    """Page by page."""
    with PageReader(database.files, database._reader) as reader:
        now = PageChecksums.scan(database.page_size, reader.chunks())
    held = database.log.checksums
    assert held is not None
    assert now.database == held.database == database.log.position.checksum


@pytest.mark.parametrize("together", [False, True])
def test_a_database_cut_back_to_any_commit_is_brought_to_the_end_of_the_log(tmp_path: Path, together: bool) -> None:
    with machine(tmp_path / "m", together=together) as app:
        app.captured()
        ends = [app.frames]
        for _ in range(ROWS):
            app.commit()
            if not together:
                app.captured()
            ends.append(app.frames)
        app.captured()
        position = app.database.log.position
        for i, frames in enumerate(ends):
            image = app.power_cut(tmp_path / f"cut{i}", frames=frames)
            with served(image) as database:
                assert newest_row(image) == ROWS
                assert database.log.position.checksum == position.checksum
                assert database.log.position.txid >= position.txid
                assert_log_is_database(database)
            assert list_discarded(image) == []


def test_after_a_replay_the_next_start_goes_on_in_the_wal(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        start = app.frames
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut", frames=start + 2)
    keep = None
    with served(image):
        keep = apsw.Connection(str(image))  # has the WAL stay when the primary ends
        keep.execute("SELECT * FROM newest").fetchall()
    with closing(keep):
        keep.execute("UPDATE newest SET n = n")
        with served(image) as database:
            assert_log_is_database(database)
            assert newest_row(image) == ROWS
    assert list_discarded(image) == []


def test_a_wal_that_is_gone_counts_as_a_power_cut_only_after_a_new_start_of_the_machine(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        app.commit(3)
        app.captured()
        app.photograph(tmp_path / "before")
        app.commit(ROWS - 3)
        app.captured()
        for name, boot_id, expected in (("lost", "another start", ROWS), ("same", Boot.now(0).boot_id, 3)):
            image = app.power_cut(tmp_path / name, photograph=tmp_path / "before")
            with closing(apsw.Connection(str(image))) as visitor:  # opens, reads, and removes the WAL when it closes
                visitor.execute("SELECT * FROM newest").fetchall()
            assert not image.with_name("app.db-wal").exists()
            set_boot(image, boot_id)
            with served(image) as database:
                assert newest_row(image) == expected
                assert_log_is_database(database)
            assert len(list_discarded(image)) == (0 if expected == ROWS else 1)


@pytest.mark.parametrize("together", [False, True])
def test_where_apps_wrote_first_the_rest_of_the_log_is_kept_aside(tmp_path: Path, together: bool) -> None:
    with machine(tmp_path / "m", together=together) as app:
        start = app.frames
        for _ in range(ROWS):
            app.commit()
            if not together:
                app.captured()
        app.captured()
        position = app.database.log.position
        image = app.power_cut(tmp_path / "cut", frames=start + (app.frames - start) // 2)
    with closing(apsw.Connection(str(image))) as other:
        found = int(other.execute("SELECT n FROM newest").get)
        assert 0 < found < ROWS
        other.execute("CREATE TABLE of_its_own(x)")
        with served(image) as database:
            assert newest_row(image) == found
            assert_log_is_database(database)
            assert database.log.position.txid > position.txid
    [kept] = list_discarded(image)
    assert str(position) in (kept.path / "summary.txt").read_text()


def test_apps_that_wrote_and_removed_the_wal_do_not_hide_what_was_lost(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        app.commit(3)
        app.captured()
        app.photograph(tmp_path / "before")
        app.commit(ROWS - 3, filler=3000)
        app.captured()
        image = app.power_cut(tmp_path / "cut", photograph=tmp_path / "before")
    set_boot(image, "another start")
    with closing(apsw.Connection(str(image))) as other:
        other.execute("CREATE TABLE of_its_own(x)")
    later_s = image.stat().st_mtime + 60  # a machine takes its time to come up again
    os.utime(image, (later_s, later_s))
    with served(image) as database:
        assert newest_row(image) == 3
        assert_log_is_database(database)
    assert len(list_discarded(image)) == 1


def test_what_apps_write_while_no_walcast_runs_is_published_and_nothing_kept(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut")
    set_boot(image, "another start")
    with closing(apsw.Connection(str(image))) as other:
        other.execute("UPDATE newest SET n = n")
        other.execute("CREATE TABLE of_its_own(x)")
    with served(image) as database:
        assert newest_row(image) == ROWS
        assert_log_is_database(database)
    assert list_discarded(image) == []


def test_pages_of_many_moments_become_one_state_again(tmp_path: Path, seed: int) -> None:
    """With synchronous=OFF a power cut leaves any version of any page."""
    rng = random.Random(seed)
    with machine(tmp_path / "m") as app:
        app.commit(3)
        app.captured()
        app.app.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        app.photograph(tmp_path / "before")
        app.commit(ROWS - 3, filler=3000)
        app.captured()
        image = app.power_cut(tmp_path / "cut", frames=app.frames)
        after = app.power_cut(tmp_path / "after")
    with closing(apsw.Connection(str(after))) as visitor:  # all of it in the file
        visitor.execute("SELECT * FROM newest").fetchall()
    old, new = (tmp_path / "before" / "app.db").read_bytes(), after.read_bytes()
    pages = [
        rng.choice((old, new))[at : at + PAGE_SIZE].ljust(PAGE_SIZE, b"\0") for at in range(0, len(new), PAGE_SIZE)
    ]
    pages[0] = new[:PAGE_SIZE]
    times = image.stat()
    image.write_bytes(b"".join(pages))
    image.with_name("app.db-wal").unlink()
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    set_boot(image, "another start")
    with served(image) as database:
        assert newest_row(image) == ROWS
        assert_log_is_database(database)
    assert list_discarded(image) == []


@pytest.mark.parametrize("where", ["append", "publish", "after"])
def test_a_replay_that_is_cut_short_is_made_again(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(tmp_path / "m") as app:
        start = app.frames
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut", frames=start + 2)

    class Cut(Exception):
        pass

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        if where == "after":
            patched.setattr(redo, "note_place", cut)
        else:
            patched.setattr(WalWriter, where, cut)
        with pytest.raises(Cut), served(image):
            pass
    with served(image) as database:
        assert newest_row(image) == ROWS
        assert_log_is_database(database)
    assert list_discarded(image) == []


def test_a_replay_is_one_commit_for_whoever_reads(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        start = app.frames
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut", frames=start + 2)
    with closing(apsw.Connection(str(image))) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT n FROM newest").get
        with served(image):
            assert reader.execute("SELECT n FROM newest").get == before < ROWS
            reader.execute("COMMIT")
            assert reader.execute("SELECT n FROM newest").get == ROWS


def test_a_replay_does_not_go_over_an_app_that_is_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redo, "LOCK_S", 0.05)
    with machine(tmp_path / "m") as app:
        start = app.frames
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut", frames=start + 2)
    with closing(apsw.Connection(str(image))) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable), served(image):
            pass


def test_a_primary_that_lost_power_and_is_started_as_a_follower_has_what_only_it_had(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        start = app.frames
        for _ in range(ROWS):
            app.commit()
            app.captured()
        position, term = app.database.log.position, app.database.log.term
        image = app.power_cut(tmp_path / "cut", frames=start + 2)
    finish_log(image)
    transactions = TransactionLog.open(state_dir(image) / "log")
    assert transactions.position.checksum == position.checksum
    applier = Applier.open(image, state_dir(image))
    try:
        assert (applier.term, applier.position) == (term, transactions.position)
    finally:
        applier.close()
    assert newest_row(image) == ROWS


def test_a_log_of_another_history_is_not_finished(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        start = app.frames
        app.commit(ROWS)
        app.captured()
        position = app.database.log.position
        image = app.power_cut(tmp_path / "cut", frames=start + 2)
    with closing(apsw.Connection(str(image))) as other:
        other.execute("CREATE TABLE of_its_own(x)")
    finish_log(image)
    assert TransactionLog.open(state_dir(image) / "log").position == position
    assert Journal(state_dir(image)).last() is None


def test_what_an_app_commits_while_the_primary_starts_is_not_replayed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path / "m") as app:
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut")
    set_boot(image, "another start")
    real = redo.scan
    with closing(apsw.Connection(str(image))) as other:
        other.execute("PRAGMA wal_autocheckpoint=0")

        def scan_late(*arguments: Any) -> Any:
            other.execute("UPDATE newest SET n = n")
            other.execute("INSERT INTO rows SELECT n + 1, 'of the app' FROM newest")
            other.execute("UPDATE newest SET n = n + 1")
            return real(*arguments)

        monkeypatch.setattr(redo, "scan", scan_late)
        with served(image) as database:
            assert_log_is_database(database)
        assert newest_row(image) > ROWS
    assert list_discarded(image) == []


def test_a_copy_that_was_given_the_inode_of_the_file_that_it_replaces_is_no_power_cut(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        app.commit(3)
        app.captured()
        app.photograph(tmp_path / "before")
        app.commit(ROWS - 3)
        app.captured()
        image = app.power_cut(tmp_path / "cut")
    with closing(apsw.Connection(str(tmp_path / "before" / "app.db"))) as backup:
        backup.execute("SELECT * FROM newest").fetchall()  # all of it in the file
    (tmp_path / "before" / "app.db").rename(image)
    image.with_name("app.db-wal").unlink()
    for same, expected in ((False, 3), (True, ROWS)):
        shutil.copytree(image.parent, tmp_path / f"for{expected}")
        copy = tmp_path / f"for{expected}" / "app.db"
        with copy.open("rb") as file:
            now = Boot.now(file.fileno())
        if not now.generation:
            pytest.skip("the file system does not tell the generation of an inode")
        write_boot(state_dir(copy), Boot("another start", now.file, now.generation ^ (not same)))
        with served(copy):
            assert newest_row(copy) == expected
        assert len(list_discarded(copy)) == (0 if same else 1)


@pytest.mark.parametrize(
    ("now", "other"),
    [
        (Boot("", (1, 20), 5, 11, 6), True),  # another file beside the same WAL
        (Boot("", (2, 20), 5, 11, 6), True),  # and the machine gives the device another number since
        (Boot("", (1, 20), 0, 11, 0), True),
        (Boot("", (1, 10), 3, 11, 4), False),
        (Boot("", (1, 20), 5, 21, 6), False),  # both were copied
        (Boot("", (2, 10), 5, 11, 6 + 1), False),  # to a new file system, which gave them the same numbers
        (Boot("", (2, 20), 0, 11, 0), False),
    ],
)
def test_a_database_that_was_moved_with_its_wal_has_no_wal_of_another(now: Boot, other: bool, tmp_path: Path) -> None:
    last = Boot("", (1, 10), 3, 11, now.wal_generation if other else 4)
    write_boot(tmp_path, last)
    assert now.has_wal_of_another(read_boot(tmp_path)) is other


def test_what_is_restored_in_place_of_a_damaged_database_is_published_and_the_rest_of_the_log_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path / "m") as app:
        app.commit(3)
        app.captured()
        app.photograph(tmp_path / "before")
        app.commit(ROWS - 3)
        app.captured()
        image = app.power_cut(tmp_path / "cut", photograph=tmp_path / "before")
    set_boot(image, "another start")
    write_note(state_dir(image), Note("2", "planted", 0))
    with monkeypatch.context() as patched:
        patched.setattr(capture_thread, "compare", full_disk)
        with pytest.raises(DiskFull), served(image):
            pass
    with served(image) as database:
        assert newest_row(image) == 3
        assert_log_is_database(database)
    assert len(list_discarded(image)) == 1
    assert read_note(state_dir(image)) is None


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def toggled(folder: Path) -> Path:
    """A database whose primary has ended, with an app's switch on a page of its own that was turned on last."""
    with machine(folder) as app:
        app.app.execute("CREATE TABLE switch(one INTEGER PRIMARY KEY, is_on INTEGER)")
        app.app.execute("INSERT INTO switch VALUES (1, 0)")
        app.commit(ROWS - 1)
        app.captured()
        app.app.execute("UPDATE switch SET is_on = 1")
        app.captured()
    return folder / "app.db"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("statement", ["UPDATE newest SET n = n + 0; DELETE FROM rows", "UPDATE switch SET is_on = 0"])
def test_what_apps_commit_after_a_primary_ended_is_not_replayed_over_when_the_machine_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, late: bool
) -> None:
    image = toggled(tmp_path / "m")
    with closing(apsw.Connection(str(image))) as other:
        other.execute(statement)
        expected = other.execute("SELECT is_on, (SELECT count(*) FROM rows) FROM switch").fetchall()
    if late:
        later_s = image.stat().st_mtime + 60
        os.utime(image, (later_s, later_s))
    monkeypatch.setattr(boot, "_BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another start")
    with served(image) as database:
        assert_log_is_database(database)
        with closing(apsw.Connection(str(image))) as other:
            assert other.execute("SELECT is_on, (SELECT count(*) FROM rows) FROM switch").fetchall() == expected
    if "switch" not in statement:  # a state that the log knows, and that may have been put there, is told from no copy
        assert list_discarded(image) == []


def test_a_page_that_is_as_it_was_before_is_no_loss_where_later_ones_are_there(tmp_path: Path) -> None:
    with machine(tmp_path / "m") as app:
        app.app.execute("CREATE TABLE switch(one INTEGER PRIMARY KEY, is_on INTEGER)")
        app.app.execute("CREATE TABLE other(x)")
        app.app.execute("INSERT INTO switch VALUES (1, 0)")
        app.captured()
        app.app.execute("UPDATE switch SET is_on = 1")
        app.commit(ROWS)
        app.captured()
    image = tmp_path / "m" / "app.db"
    with closing(apsw.Connection(str(image))) as other:
        other.execute("UPDATE switch SET is_on = 0")
        other.execute("INSERT INTO other VALUES (1)")
    with served(image) as database:
        assert_log_is_database(database)
    assert newest_row(image) == ROWS
    assert list_discarded(image) == []


@pytest.mark.parametrize("kept_open", [True, False], ids=["the same WAL", "a new WAL"])
def test_a_page_that_is_as_it_was_before_is_no_loss_where_all_others_were_written_again(
    tmp_path: Path, kept_open: bool
) -> None:
    """A small database of an app that is busy while no walcast runs: nothing of the log's end stands in it."""
    with machine(tmp_path / "m") as app:
        app.app.execute("CREATE TABLE switch(one INTEGER PRIMARY KEY, is_on INTEGER)")
        app.app.execute("INSERT INTO switch VALUES (1, 0)")
        app.captured()
        app.app.execute("UPDATE switch SET is_on = 1")
        app.commit(ROWS)
        app.captured()
        app.database.stop()
        if not kept_open:
            app.app.close()
            app.app = apsw.Connection(str(app.path))
        app.app.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        app.app.execute("UPDATE switch SET is_on = 0")
        app.app.execute("CREATE TABLE of_its_own(x)")
        for _ in range(2):
            app.commit()
            app.app.execute("UPDATE rows SET filler = randomblob(99)")
            app.app.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        app.commit()
        app.database = Database(app.path, "app")
        app.database.start()
        assert_log_is_database(app.database)
    assert newest_row(app.path) == ROWS + 3
    assert list_discarded(app.path) == []


def test_the_first_commit_of_a_wal_that_began_again_is_not_replayed_over(tmp_path: Path) -> None:
    """It was synced, and the power went before it was captured."""
    with machine(tmp_path / "m", together=True) as app:
        app.commit(ROWS - 1)
        app.captured()
        header = app.database.files.index_header()
        assert header is not None
        app.database.loop._checkpointer.give_back(header.mx_frame)
        app.commit()
        after = app.database.files.index_header()
        assert after is not None
        assert after.salt != header.salt
        image = app.power_cut(tmp_path / "cut")
    set_boot(image, "another start")
    with served(image) as database:
        assert_log_is_database(database)
    assert newest_row(image) == ROWS


def test_the_header_of_a_wal_is_durable_before_the_log_has_a_commit_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut may leave the first frames of the WAL before, and recovery lays them over a newer database."""
    synced: list[str] = []
    real = os.fdatasync

    def sync(fd: int) -> None:
        real(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().suffix)

    monkeypatch.setattr(os, "fdatasync", sync)
    with machine(tmp_path / "m", together=True) as app:
        app.commit()
        app.captured()
        app.database.loop._checkpointer.give_back(app.frames)
        synced.clear()
        for expected in ([".db-wal", ".log"], [".log"]):
            app.commit()
            app.captured()
            assert synced == expected
            synced.clear()


def test_a_clock_that_is_behind_after_a_power_cut_does_not_hide_what_apps_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_ms = time.time_ns() // 1_000_000 + 600_000
    with machine(tmp_path / "m") as app, monkeypatch.context() as patched:
        patched.setattr(TransactionLog, "timestamp_ms", lambda _: ahead_ms)
        app.commit(ROWS - 1)
        app.captured()
        image = app.power_cut(tmp_path / "cut")
    set_boot(image, "another start")
    with closing(apsw.Connection(str(image))) as other:
        other.execute("INSERT INTO rows SELECT n + 1, 'of the app' FROM newest")
        other.execute("UPDATE newest SET n = n + 1")
    with served(image) as database:
        assert_log_is_database(database)
    assert newest_row(image) == ROWS


def test_an_entry_without_its_table_of_marks_is_no_entry(tmp_path: Path) -> None:
    with machine(tmp_path / "m", together=True) as app:
        app.captured()
        first = app.database.log.position
        app.commit(ROWS)
        app.captured()
        image = app.power_cut(tmp_path / "cut")
        entry = app.database.log.last
        assert entry is not None
        assert len(entry.marks()) == ROWS - 1
        torn = image.with_name("app.db-walcast") / "log" / entry.segment.path.name
        with torn.open("r+b") as file:
            file.seek(entry.offset + entry.size + entry.marks_size - 3)
            file.write(b"\xff\xff\xff")
    assert TransactionLog.open(torn.parent).position == first


def test_decisions() -> None:
    entry = object()
    proven, alike = TakenBack(entry, proven=True), TakenBack(entry, proven=False)  # type: ignore[arg-type]
    written = WrittenOn(Position(7, 1 << 63))
    for found, way in (
        (Found(proven, lost_power=False), Way.REPLAY),
        (Found(alike, lost_power=True), Way.REPLAY),
        (Found(alike, lost_power=False), Way.KEEP),
        (Found(written, lost_power=True), Way.KEEP),
        (Found(written, lost_power=True, torn_only=True), Way.REPLAY),
        (Found(None, lost_power=True, torn_only=True), Way.REPLAY),
        (Found(None, lost_power=False, torn_only=True), Way.PUBLISH),
        (Found(None, lost_power=True), Way.PUBLISH),
        (Found(Continues(more=True), lost_power=True, torn_only=True), Way.PUBLISH),
        (Found(Continues(more=False), lost_power=True, torn_only=True), Way.REPLAY),
        (Found(Continues(more=False), lost_power=True), Way.PUBLISH),
    ):
        assert decide(found) is way, found
