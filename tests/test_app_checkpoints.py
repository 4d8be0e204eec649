"""Checkpoints that apps run: RESTART and TRUNCATE hold the write lock while they wait for readers, of whom the primary
is one. It goes out of their way, so that neither the checkpoint nor a writer waits for longer than without a primary.

SQLite of this process is the primary's; the apps are other processes.
"""

from __future__ import annotations

import errno
import os
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.nodes import poll
from support.writers import Sql, sql

from walcast.dbfiles import DatabaseFiles
from walcast.locks import is_locked, try_lock, unlock
from walcast.walindex import LOCK_READ0, READ_MARKS
from walcast_primary.capture import capture_thread as looping
from walcast_primary.capture.anchor import Anchor
from walcast_primary.capture.anchor_pace import AnchorPace
from walcast_primary.capture.capture import Capture

INSERT = "INSERT INTO filler (body) VALUES (randomblob(2000))"
ROUNDS = 9


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


@pytest.fixture
def app(db: Path) -> Iterator[Served]:
    with served(db) as made:
        yield made


def checkpoint(one: Sql, mode: str) -> tuple[int, float]:
    """Was it busy, and how long did it take, in seconds?"""
    [[busy, *_]] = one(f"PRAGMA wal_checkpoint({mode})")
    return busy, one.seconds


@pytest.mark.parametrize("mode", ["FULL", "RESTART", "TRUNCATE"])
def test_a_checkpoint_after_each_commit_waits_for_no_timer_of_the_primary(
    db: Path, app: Served, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 10 ms on a machine that is idle; on a busy one the scheduler decides. The timers are what it must not
    depend on, so they are far longer here than any scheduler takes."""
    monkeypatch.setattr(looping, "UNQUIET_S", 10.0)
    monkeypatch.setattr(looping, "IDLE_S", 10.0)
    waited_s = []
    with sql(db, timeout_s=30.0) as one:
        for _ in range(ROUNDS):
            one(INSERT)
            busy, seconds = checkpoint(one, mode)
            assert not busy
            waited_s.append(seconds)
    assert statistics.median(waited_s) < 1.0, waited_s
    app.verify()


def test_a_writer_with_a_short_busy_timeout_outlasts_truncating_checkpoints(db: Path, app: Served) -> None:
    with sql(db, timeout_s=5.0) as maintenance, sql(db, timeout_s=0.2) as one:
        for _ in range(ROUNDS):
            one(INSERT)
            assert not checkpoint(maintenance, "TRUNCATE")[0]
            one(INSERT)
    assert app.commits == 2 * ROUNDS
    app.verify()


def test_a_primary_that_had_to_share_an_old_read_mark_leaves_it_without_a_commit(db: Path, app: Served) -> None:
    """With every read mark in use SQLite gives the anchor one of somebody else's, and a checkpoint that waits for it
    keeps everybody from committing."""
    with sql(db, timeout_s=2.0) as one:
        with ExitStack() as stack:
            for _ in range(6):  # more than there are marks
                reader = stack.enter_context(sql(db))
                reader("BEGIN")
                reader("SELECT count(*) FROM filler")
                one(INSERT)
                app.database.loop.barrier().result(10.0)
            one(INSERT)
            app.database.loop.barrier().result(10.0)
        assert checkpoint(one, "TRUNCATE")[0] == 0
    app.verify()


def test_while_nothing_can_be_captured_a_checkpoint_is_busy_at_once_and_nobody_waits(
    db: Path, app: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = app.database.loop

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with sql(db, timeout_s=5.0) as maintenance, sql(db, timeout_s=0.2) as one:
        with monkeypatch.context() as patched:
            patched.setattr(app.database.log, "append", full)
            one(INSERT)
            assert poll(lambda: loop.trouble is not None)
            busy, seconds = checkpoint(maintenance, "TRUNCATE")
            assert busy
            assert seconds < 0.5
            one(INSERT)
        assert poll(lambda: loop.trouble is None)
        assert app.commits == 2
        assert checkpoint(maintenance, "TRUNCATE")[0] == 0
    app.verify()


def test_an_anchor_that_took_the_mark_a_checkpoint_waits_for_stands_aside_and_still_holds_the_frames(db: Path) -> None:
    with sql(db, timeout_s=10.0) as one, ThreadPoolExecutor(1) as thread:
        one(INSERT)  # so that there is a WAL to have a mark in
        anchor = Anchor(db)
        files = DatabaseFiles(db)
        try:
            one(INSERT)
            waiting = thread.submit(checkpoint, one, "FULL")
            assert not wait([waiting], 0.1).done, "it does not wait for the anchor"
            anchor.let_go()
            anchor.hold()  # the same mark, between two looks of SQLite's busy handler
            assert not wait([waiting], 0.2).done, "it has not come to what this test is about"

            assert anchor.stand_aside(files)
            assert waiting.result(5.0)[0] == 0
            before = files.index_header()
            one(INSERT)  # would restart the WAL, all of which is copied, if nothing held it
            after = files.index_header()
            assert before
            assert after
            assert after.salt == before.salt
            assert after.mx_frame > before.mx_frame

            anchor.move(lambda: None)
            assert not anchor.is_aside
            assert checkpoint(one, "FULL")[0] == 0
            anchor.move(lambda: None)  # to read lock 0
            one(INSERT)
            restarted = files.index_header()
            assert restarted
            assert restarted.salt != after.salt
        finally:
            anchor.close()
            files.close()


def test_a_primary_whose_anchor_took_that_mark_stands_aside_by_itself(
    db: Path, app: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, anchor, pace = app.database.loop, app.database._anchor, app.database.loop._pace
    follow, stays, takes_it = pace.follow, threading.Event(), threading.Event()
    shm, marks = app.database.files.shm_fd, set(range(LOCK_READ0 + 1, LOCK_READ0 + READ_MARKS))

    def marks_in_use() -> set[int]:
        return {byte for byte in marks if is_locked(shm, byte)}

    def late(*, busy: bool = False) -> bool:
        """The anchor stays where it is, and then takes the mark between two looks of SQLite's busy handler."""
        if takes_it.is_set():
            monkeypatch.setattr(pace, "follow", follow)
            others = marks - marks_in_use()  # so that it takes the same
            taken = [byte for byte in others if try_lock(shm, byte, exclusive=False)]
            anchor.let_go()
            anchor.hold()
            for byte in taken:
                unlock(shm, byte)
        elif not stays.is_set():
            return follow(busy=busy)
        return True

    with sql(db, timeout_s=10.0) as one, ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr(pace, "follow", late)
        one(INSERT)
        assert poll(marks_in_use), "it stays where it needs no mark"
        stays.set()
        one(INSERT)
        loop.barrier().result(10.0)
        waiting = thread.submit(checkpoint, one, "FULL")
        assert not wait([waiting], 0.1).done, "it does not wait for the anchor"
        takes_it.set()
        assert waiting.result(20.0)[0] == 0
        one(INSERT)
    assert app.commits == 3
    app.verify()


def test_an_anchor_that_got_a_mark_where_read_lock_0_was_wanted_begins_again(db: Path) -> None:
    """As where a checkpoint that has copied everything still has that lock."""
    with sql(db, timeout_s=0.1) as one:
        one(INSERT)
        anchor = Anchor(db)
        files = DatabaseFiles(db)
        pace = AnchorPace(anchor, cast(Capture, Still(files)))
        try:
            pace.follow()
            assert checkpoint(one, "PASSIVE")[0] == 0
            assert try_lock(files.shm_fd, LOCK_READ0)
            assert not poll(pace.follow, 0.1)
            unlock(files.shm_fd, LOCK_READ0)
            assert checkpoint(one, "RESTART")[0], "it has no mark"
            assert poll(pace.follow, 5.0)
            assert checkpoint(one, "RESTART")[0] == 0
        finally:
            anchor.close()
            files.close()


class Still:
    """A capture that has everything."""

    def __init__(self, files: DatabaseFiles) -> None:
        self.files = files
        header = files.index_header()
        assert header
        self.salt, self.frame = header.salt, header.mx_frame

    def settle(self) -> None:
        """There is nothing new."""
