"""What ran out is told apart by type, and what happens again and again is said rarely."""

from __future__ import annotations

import errno
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

from walcast.errors import DiskFull, Exhausted, Unavailable
from walcast.position import Position
from walcast.rarely import Rarely
from walcast.shortage import disk_error, free_bytes, shortage
from walcast.statusfile import State, read_last_status
from walcast_follower.status_reporter import Showing
from walcast_node.process.thread_pool import Threads


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (os_error(errno.ENOSPC), DiskFull),
        (os_error(errno.EDQUOT), DiskFull),
        (apsw.FullError("database or disk is full"), DiskFull),
        (os_error(errno.EMFILE), Exhausted),
        (os_error(errno.ENFILE), Exhausted),
        (os_error(errno.ENOMEM), Exhausted),
        (MemoryError(), Exhausted),
        (apsw.NoMemError("out of memory"), Exhausted),
        (RuntimeError("can't start new thread"), Exhausted),
        (os_error(errno.EIO), None),
        (OSError("short write"), None),
        (apsw.IOError("disk I/O error"), None),
        (RuntimeError("begin: a transaction is open"), None),
    ],
    ids=repr,
)
def test_what_ran_out_has_a_type_and_what_did_not_has_none(error: Exception, kind: type[Unavailable] | None) -> None:
    known = shortage(error, "/data/app.db")
    assert (known and type(known)) == kind
    assert "None" not in str(known or "")
    assert known is None or "/data/app.db" in str(known)


def test_every_error_of_the_disk_has_a_path_and_a_reason(tmp_path: Path) -> None:
    full = disk_error(os_error(errno.ENOSPC), tmp_path / "x", needed_bytes=1 << 20)
    assert isinstance(full, DiskFull)
    assert (full.path, full.needed_bytes) == (tmp_path / "x", 1 << 20)
    assert full.free_bytes == pytest.approx(free_bytes(tmp_path), rel=0.5)
    assert str(disk_error(OSError("short write"), "/data/app.db")) == "/data/app.db: short write"
    assert str(disk_error(OSError(), "/data/app.db")) == "/data/app.db: OSError"


def test_a_condition_is_logged_at_once_and_then_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    rarely = Rarely(logging.getLogger("walcast.test"), clock=lambda: now[0])
    logged = []
    for second in range(0, 10_000, 5):
        now[0] = float(second)
        if rarely.log(logging.WARNING, "full", "disk", {"free": second}):
            logged.append(second)
    assert logged == [0, 60, 660, 4260, 7860]
    suppressed = [getattr(record, "suppressed", 0) for record in caplog.records if record.levelno == logging.WARNING]
    assert suppressed == [0, 11, 119, 719, 719]
    assert rarely.log(logging.WARNING, "full", "another disk", {})
    with caplog.at_level(logging.INFO):
        assert rarely.over("there is room again", "disk")
    assert (caplog.records[-1].times, caplog.records[-1].seconds) == (2000, 9995.0)  # type: ignore[attr-defined]
    assert not rarely.over("there is room again", "disk")
    assert rarely.log(logging.WARNING, "full", "disk", {}), "it is new"


def test_the_first_few_of_a_burst_are_logged_and_what_was_quiet_for_long_is_new() -> None:
    now = [0.0]
    rarely = Rarely(logging.getLogger("walcast.test"), clock=lambda: now[0])

    def times(count: int) -> int:
        return sum(rarely.log(logging.INFO, "came", "edge-1", {}, burst=3) for _ in range(count))

    assert times(10) == 3
    now[0] = 59.0
    assert times(10) == 0
    now[0] = 200.0
    assert times(10) == 3


def test_a_status_file_that_cannot_be_written_is_no_trouble_of_the_follower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Client:
        primary, database, follower_id = "127.0.0.1:1", "app", "f"

    opened, none_left = os.open, [True]

    def out_of_them(path: object, *arguments: int, **more: int) -> int:
        if none_left[0]:
            raise os_error(errno.EMFILE)
        return opened(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", out_of_them)
    showing = Showing(tmp_path, Client())  # type: ignore[arg-type]
    for txid in range(1, 9):
        showing.show(State.STREAMING, 1, Position(txid, 1), "127.0.0.1:1", primary_txid=txid)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == ["cannot write the status file"]
    none_left[0] = False
    showing.show(State.STREAMING, 1, Position(9, 1), "127.0.0.1:1", primary_txid=9)
    assert read_last_status(tmp_path).position == Position(9, 1)
    showing.close()


def test_work_is_done_by_the_threads_there_are_when_no_more_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with Threads(4) as pool:
        assert pool.submit(int).result() == 0

        def none_left(self: ThreadPoolExecutor) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(ThreadPoolExecutor, "_adjust_thread_count", none_left)
        slow = [pool.submit(time.sleep, 0.01) for _ in range(5)]
        assert pool.submit(int).result(10.0) == 0
        assert all(future.done() for future in slow)
    with Threads(4) as empty, pytest.raises(RuntimeError):
        empty.submit(int)
