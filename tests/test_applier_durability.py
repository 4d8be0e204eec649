"""What an applier says is on disk, and what it says when the disk fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.apply_processes import Sql
from support.apply_replica import finish, replica_of, scan
from support.apply_source import Source

from walcast.errors import Diverged, Stopped, Unavailable
from walcast.filesystem import write_durably
from walcast.position import Position
from walcast.statedir import StateDir
from walcast.wal import frame_offset
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.durability import MARKER
from walcast_follower.apply.position_journal import RECORD_SIZE, Journal

CHECKSUM = 1 << 63


class Disk:
    """Notes what is synced and written, by file name; syncs of `failing` names end with EIO."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[str] = []
        self.written: list[tuple[str, int, int]] = []
        self.failing: set[str] = set()
        self._real = {name: getattr(os, name) for name in ("fdatasync", "fsync", "pwrite")}
        monkeypatch.setattr(os, "fdatasync", lambda fd: self._sync("fdatasync", fd))
        monkeypatch.setattr(os, "fsync", lambda fd: self._sync("fsync", fd))
        monkeypatch.setattr(os, "pwrite", self._pwrite)

    def _sync(self, call: str, fd: int) -> None:
        name = _name(fd)
        if name in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real[call](fd)
        self.synced.append(name)

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        done: int = self._real["pwrite"](fd, data, offset)
        self.written.append((_name(fd), offset, done))
        return done

    def rewritten(self, name: str) -> int:
        """How many bytes from the beginning of the file on were written, without a hole."""
        end = 0
        for _, offset, size in sorted(entry for entry in self.written if entry[0] == name):
            if offset > end:
                break
            end = max(end, offset + size)
        return end


def _name(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.db.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_sync_makes_what_was_applied_durable_and_its_name_first(source: Source, tmp_path: Path, disk: Disk) -> None:
    applier = replica_of(source, tmp_path)
    first = source.grow()
    first.apply(applier)
    disk.synced.clear()
    assert applier.durable == Position()
    assert applier.sync() == applier.durable == first.position
    assert disk.synced == ["positions", "app.db-wal", "replica"], "names, frames, and that the WAL has a name"
    source.transfer().apply(applier)
    assert applier.durable == first.position
    disk.synced.clear()
    applier.sync()
    assert disk.synced == ["positions", "app.db-wal"]
    assert finish(applier) == source.close()


def test_what_is_applied_during_a_sync_is_not_said_to_be_durable(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applier = replica_of(source, tmp_path)
    first, second = source.transfer(), source.transfer()
    first.apply(applier)
    real = os.fdatasync

    def meanwhile(fd: int) -> None:
        if applier.position == first.position:
            second.apply(applier)
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", meanwhile)
        assert applier.sync() == first.position
    assert applier.position == second.position
    assert finish(applier) == source.close()


@pytest.mark.parametrize("failing", ["app.db-wal", "positions"])
def test_after_a_failed_sync_nothing_is_durable_before_all_of_it_was_written_anew(
    source: Source, tmp_path: Path, disk: Disk, failing: str
) -> None:
    """The kernel takes the pages that it could not write for clean, so that a sync alone would succeed."""
    applier = replica_of(source, tmp_path)
    first = source.transfer()
    first.apply(applier)
    applier.sync()
    for _ in range(3):
        source.grow().apply(applier)
    disk.failing = {failing}
    with pytest.raises(Unavailable, match="Input/output error"):
        applier.sync()
    assert applier.durable == first.position
    with pytest.raises(Unavailable):
        applier.sync()
    last = source.transfer()
    last.apply(applier)
    disk.failing, disk.written[:], inode = set(), [], (tmp_path / "state" / "positions").stat().st_ino
    assert applier.sync() == last.position
    whole = frame_offset(applier.wal_frames + 1, applier.page_size)
    assert disk.rewritten("app.db-wal") == (whole if failing == "app.db-wal" else 0)
    new_file = (tmp_path / "state" / "positions").stat().st_ino != inode
    assert new_file == (failing == "positions"), "where names are not on disk, they are in a new file then"
    assert not (tmp_path / "state" / MARKER).exists()
    disk.written.clear()
    source.transfer().apply(applier)
    applier.sync()
    assert disk.rewritten("app.db-wal") == 0, "and once is enough"
    assert finish(applier) == source.close()


def test_a_database_file_that_could_not_be_synced_is_copied_again_before_the_wal_restarts(
    source: Source, tmp_path: Path, disk: Disk
) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    frames = applier.wal_frames
    disk.failing = {"app.db"}
    with Sql.on(applier.path) as reader:
        reader("PRAGMA synchronous = OFF")
        assert reader("PRAGMA wal_checkpoint(PASSIVE)") == [[0, frames, frames]]
        assert applier.backfilled_frames == frames
        assert not applier.restart_wal_if_possible(), "it is all there, but nobody knows whether on disk"
        assert applier.backfilled_frames == 0
        disk.failing = set()
        assert not applier.restart_wal_if_possible()
        applier.sync()
        assert not applier.restart_wal_if_possible()
        assert applier.checkpoint().complete
        assert applier.restart_wal_if_possible()
        assert reader("PRAGMA integrity_check") == [["ok"]]
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


def test_a_journal_that_cannot_be_synced_does_not_keep_the_wal_from_giving_its_room_back(
    source: Source, tmp_path: Path, disk: Disk
) -> None:
    """On a full disk there may be no room for a new journal before the WAL was restarted and cut."""
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    disk.failing = {"positions", "positions.tmp"}
    with pytest.raises(Unavailable):
        applier.sync()
    assert applier.checkpoint().complete
    assert applier.restart_wal_if_possible()
    with pytest.raises(Unavailable):
        applier.sync()
    disk.failing = set()
    assert applier.sync() == applier.position
    assert finish(applier) == source.close()


def test_a_wal_restarts_only_over_a_synced_database_file(source: Source, tmp_path: Path, disk: Disk) -> None:
    """Another program may make the checkpoint, with synchronous=OFF."""
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    with Sql.on(applier.path) as reader:
        reader("PRAGMA synchronous = OFF")
        reader("PRAGMA wal_checkpoint(PASSIVE)")
        disk.synced.clear()
        assert applier.restart_wal_if_possible()
        assert disk.synced == ["app.db"]
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


def test_a_new_process_does_not_believe_a_file_that_the_old_one_could_not_sync(
    source: Source, tmp_path: Path, disk: Disk
) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    disk.failing = {"app.db-wal"}
    with Sql.on(applier.path) as reader:  # keeps the WAL
        reader("SELECT * FROM meta")
        with pytest.raises(Unavailable):
            applier.sync()
        applier.close()
        disk.failing, disk.written[:] = set(), []
        again = Applier.open(applier.path, tmp_path / "state")
        assert again.position == applier.position
        assert again.sync() == again.position
        assert disk.rewritten("app.db-wal") == frame_offset(again.wal_frames + 1, again.page_size)
    assert not (tmp_path / "state" / MARKER).exists()
    assert finish(again) == source.close()


def test_what_the_kernel_has_lost_meanwhile_is_found_out_and_never_confirmed(
    source: Source, tmp_path: Path, disk: Disk
) -> None:
    applier = replica_of(source, tmp_path)
    first = source.transfer()
    first.apply(applier)
    applier.sync()
    source.grow().apply(applier)
    disk.failing = {"app.db-wal"}
    with pytest.raises(Unavailable):
        applier.sync()
    disk.failing = set()
    at = frame_offset(applier.wal_frames, applier.page_size) + 1000
    with Path(f"{applier.path}-wal").open("r+b") as file:  # as read back from a disk that never had it
        file.seek(at)
        was = file.read(1)
        file.seek(at)
        file.write(bytes([was[0] ^ 1]))
    with pytest.raises(Stopped):
        applier.sync()
    assert applier.durable == first.position
    with pytest.raises(Stopped):
        applier.begin()
    applier.close()


def test_an_applier_is_released_only_with_everything_on_disk(source: Source, tmp_path: Path, disk: Disk) -> None:
    applier = replica_of(source, tmp_path)
    last = source.grow()
    last.apply(applier)
    applier.checkpoint()
    state = StateDir(applier.path)
    disk.failing = {"app.db-wal"}
    with pytest.raises(Unavailable):
        applier.release(state)
    last = source.transfer()
    last.apply(applier)  # it is an applier still
    disk.failing = {"app.db"}
    with pytest.raises(Unavailable):
        applier.release(state)
    disk.failing = set()
    disk.synced.clear()
    held = applier.release(state)
    assert applier.durable == last.position
    assert disk.synced[-1] == "app.db"
    assert {"positions", "app.db-wal"} <= set(disk.synced)
    held.close()


def test_a_state_is_given_the_name_that_it_lost(source: Source, tmp_path: Path, disk: Disk) -> None:
    applier = replica_of(source, tmp_path)
    assert applier.position == Position()
    with pytest.raises(Diverged):
        applier.name(3, Position(1, CHECKSUM))
    with pytest.raises(Diverged):
        applier.name(3, Position(0, source.first_position.checksum))
    disk.failing = {"positions"}
    with pytest.raises(Unavailable):
        applier.name(3, source.first_position)
    assert applier.position == Position()
    disk.failing = set()
    applier.name(3, source.first_position)
    assert (applier.term, applier.position) == (3, source.first_position)
    applier.close()
    again = Applier.open(applier.path, tmp_path / "state")
    assert (again.term, again.position) == (3, source.first_position)
    source.transfer().apply(again, term=3)
    assert scan(again) == again.position.checksum
    assert finish(again) == source.close()


# The journal, and small files


def test_a_journal_is_in_its_directory_before_anything_is_written_to_it(tmp_path: Path, disk: Disk) -> None:
    Journal(tmp_path / "state").close()
    assert disk.synced == [tmp_path.name, "state"]
    disk.synced.clear()
    Journal(tmp_path / "state").close()
    assert disk.synced == []


def test_a_full_disk_says_so_though_a_part_of_the_record_found_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    real, left = os.pwrite, [7]

    def nearly_full(fd: int, data: Any, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(fd, bytes(data)[: left[0]], offset)
        left[0] -= done
        return done

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", nearly_full)
        with pytest.raises(OSError, match="No space left") as caught:
            journal.append(1, Position(1, CHECKSUM), 0)
    assert (caught.value.errno, caught.value.strerror) == (errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert journal.last() is None
    journal.append(1, Position(2, CHECKSUM), 0)
    journal.close()
    assert (tmp_path / "positions").stat().st_size == RECORD_SIZE
    again = Journal(tmp_path)
    assert again.last() == (1, Position(2, CHECKSUM))
    again.close()


def test_a_name_that_comes_while_the_journal_is_written_anew_is_not_lost(tmp_path: Path, disk: Disk) -> None:
    journal = Journal(tmp_path)
    journal.append(1, Position(1, CHECKSUM + 1), 0)
    disk.failing = {"positions"}
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    disk.failing = {"positions.tmp"}
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    journal.append(1, Position(2, CHECKSUM + 2), 0)
    disk.failing = {tmp_path.name}  # the new file has the name, but nobody knows for how long
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    journal.append(1, Position(3, CHECKSUM + 3), 0)
    disk.failing = set()
    journal.sync()
    journal.append(1, Position(4, CHECKSUM + 4), 0)
    journal.close()
    again = Journal(tmp_path)
    assert all(again.find(CHECKSUM + i) == (1, Position(i, CHECKSUM + i)) for i in (1, 2, 3, 4))
    again.close()


def test_a_small_file_is_synced_before_it_has_its_name_and_the_name_before_it_counts(
    tmp_path: Path, disk: Disk
) -> None:
    path = tmp_path / "role"
    write_durably(path, b"old")
    disk.synced.clear()
    write_durably(path, b"new, ", memoryview(b"in pieces"))
    assert disk.synced == ["role.tmp", tmp_path.name]
    disk.failing = {"role.tmp"}
    with pytest.raises(OSError, match="Input/output"):
        write_durably(path, b"newer")
    assert path.read_bytes() == b"new, in pieces"
    assert [found.name for found in tmp_path.iterdir()] == ["role"]
