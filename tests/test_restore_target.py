"""The file that a restore makes: hidden until it is whole; what killed and failed restores leave, and who clears it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.archives import History, MemoryStore
from support.users import modes, open_to_others, umask

from walcast.errors import ConfigError, Unavailable
from walcast.restore import restore
from walcast.restore.target import put_in_place, remove_leftovers, temporary_beside
from walcast.store import open_store

DEADLINE_S = 30
STUCK = """
import sys, time
from pathlib import Path
from walcast.restore import restore
from walcast.store import open_store

def progress(done, total):
    if done == total:
        print("downloaded", flush=True)
        time.sleep(60)

restore(open_store(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


@pytest.fixture
def history() -> History:
    made = History(MemoryStore())
    made.commit(6)
    made.put(9, 1, 6)
    return made


@contextmanager
def running(archive: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A restore in a process of its own that stands still just before its end."""
    command = [sys.executable, "-c", STUCK, str(archive), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "downloaded\n"
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE_S)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_restore_leaves_only_a_hidden_file_and_the_next_one_removes_it(tmp_path: Path) -> None:
    history = History(open_store(str(tmp_path / "archive")))
    history.commit(3)
    history.put(9, 1, 3)
    folder = tmp_path / "new"
    with running(tmp_path / "archive", folder / "app.db"):
        (hidden,) = names(folder)
        assert hidden.startswith(".app.db.")
        assert hidden.endswith(".walcast-restore")
    assert names(folder) == [hidden]
    (folder / f"{hidden}-wal").write_bytes(b"")
    kept = [".app.db.0123.walcast-restore", ".other.db.01234567.walcast-restore", "app.db.01234567.walcast-restore"]
    for name in kept:
        (folder / name).write_text("not ours")
    restore(history.store, folder / "app.db")
    assert names(folder) == sorted([*kept, "app.db"])


def test_the_hidden_file_of_a_running_restore_stays(tmp_path: Path) -> None:
    history = History(open_store(str(tmp_path / "archive")))
    history.commit(3)
    history.put(9, 1, 3)
    out = tmp_path / "new" / "app.db"
    with running(tmp_path / "archive", out):
        (hidden,) = names(out.parent)
        restore(history.store, out)
        assert names(out.parent) == [hidden, "app.db"]
        assert out.read_bytes() == history.states[3]


def test_a_leftover_that_cannot_be_removed_is_no_error(tmp_path: Path) -> None:
    (tmp_path / ".app.db.01234567.walcast-restore").mkdir()
    remove_leftovers(tmp_path / "app.db")
    assert names(tmp_path) == [".app.db.01234567.walcast-restore"]


def test_a_failed_restore_takes_the_folders_away_that_it_made(tmp_path: Path) -> None:
    history = History(MemoryStore())
    history.commit(6)
    key = history.put(9, 1, 6)
    history.store.put(key, b"nothing", timestamp_ms=0)
    with pytest.raises(Exception, match=key):
        restore(history.store, tmp_path / "a" / "b" / "app.db")
    assert not names(tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(history: History, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(history.states[6]) - 100, hard))
    try:
        with pytest.raises(Unavailable) as caught:
            restore(history.store, tmp_path / "new" / "app.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(caught.value)
    assert "bytes are free there); nothing was left behind" in str(caught.value)
    assert not names(tmp_path)


def test_a_file_that_comes_meanwhile_is_not_overwritten(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"

    def progress(done: int, total: int) -> None:
        out.write_bytes(b"somebody's")

    with pytest.raises(ConfigError, match="exists"):
        restore(history.store, out, progress=progress)
    with temporary_beside(out) as temporary:
        out.unlink()
        temporary.write_bytes(b"x")
        put_in_place(temporary, out, force=False)
    assert out.read_bytes() == b"x"
    assert names(tmp_path) == ["app.db"]


def test_a_symbolic_link_is_followed_as_sqlite_does(history: History, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, real = tmp_path / "app.db", tmp_path / "disk" / "real.db"
    link.symlink_to(real)
    restore(history.store, link)
    assert real.read_bytes() == history.states[6]
    with pytest.raises(ConfigError, match="--force"):
        restore(history.store, link)
    (tmp_path / "disk" / "real.db-wal").write_bytes(b"old")
    restore(history.store, link, force=True)
    assert link.is_symlink()
    assert names(real.parent) == ["real.db"]


def test_force_keeps_mode_and_owner(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    out.write_bytes(b"old")
    out.chmod(0o640)
    if os.getuid() == 0:
        os.chown(out, 12345, 12346)
    restore(history.store, out, force=True)
    status = out.stat()
    assert status.st_mode & 0o7777 == 0o640
    if os.getuid() == 0:
        assert (status.st_uid, status.st_gid) == (12345, 12346)


def test_a_dry_run_says_where_the_plan_leads_and_what_is_in_the_way(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    history.commit(2)
    history.put(0, 7, 7)
    history.put(0, 8, 8)
    for file in list(history.store.objects):  # type: ignore[attr-defined]
        history.store.put(file, history.store.get(file), timestamp_ms=1 << 41)  # as S3 lists uploads
    report = restore(history.store, out, dry_run=True)
    assert report.planned is not None
    assert (report.planned.position.txid, report.planned.position.checksum) == (8, history.checksum(8))
    assert report.planned.timestamp_ms == 8000
    assert report.planned.times_ms == (6000, 7000, 8000)
    assert report.planned.commit_pages * report.planned.page_size == len(history.states[8])
    assert report.obstacle is None
    out.write_bytes(b"mine")
    assert "--force" in (restore(history.store, out, dry_run=True).obstacle or "")
    assert restore(history.store, out, dry_run=True, force=True).obstacle is None
    assert restore(history.store, out, dry_run=True, if_db_not_exists=True).skipped == "the database exists"
    assert names(tmp_path) == ["app.db"]


def test_a_dry_run_goes_around_what_a_restore_would(history: History, tmp_path: Path) -> None:
    history.commit(2)
    history.put(0, 7, 7)
    history.put(0, 8, 8)
    key = history.put(1, 7, 8)
    history.store.put(key, b"no header", timestamp_ms=0)
    report = restore(history.store, tmp_path / "app.db", dry_run=True)
    assert report.went_around == (key,)
    assert [file.max_txid for file in report.plan] == [6, 7, 8]


def test_a_new_file_and_new_folders_are_for_their_owner_only_or_as_asked(history: History, tmp_path: Path) -> None:
    for name, mode in (("closed", 0o600), ("shared", 0o640)):
        with umask(0o000):
            restore(history.store, out := tmp_path / name / "app.db", mode=mode)
        assert modes(out.parent)["app.db"] == mode
        assert open_to_others(out.parent) == ({} if mode == 0o600 else {"app.db": "640"})
        assert out.parent.stat().st_mode & 0o777 == 0o700


def test_the_hidden_file_of_a_restore_is_for_its_owner_only_so_that_nobody_else_holds_its_lock(tmp_path: Path) -> None:
    with umask(0o000), temporary_beside(tmp_path / "app.db"):
        assert list(modes(tmp_path).values()) == [0o600]
