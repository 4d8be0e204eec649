"""Consistent reads of pages through our own descriptors, while stock writers and checkpoints run."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import apsw
import numpy as np
import pytest
from support.apply_processes import PATIENCE_SECONDS, Sql, script
from support.apply_source import TOTAL, Source

from walcast import dbfiles
from walcast.checksum import lock_pgno
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import Corrupt, Unavailable


def opened(path: Path) -> tuple[apsw.Connection, DatabaseFiles]:
    connection = apsw.Connection(str(path))
    connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    return connection, DatabaseFiles(path)


def closed(connection: apsw.Connection, files: DatabaseFiles) -> None:
    connection.close()
    files.close()


def whole(reader: PageReader, pages_per_chunk: int = 256) -> bytes:
    return b"".join(bytes(pages) for _, pages in reader.chunks(pages_per_chunk))


def check(data: bytes, path: Path) -> int:
    """The version of a copy in which the invariants hold."""
    path.write_bytes(data)
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT sum(balance) FROM accounts").fetchone()[0] == TOTAL
        version, rows, size = db.execute("SELECT version, rows, bytes FROM meta").fetchone()
        found = db.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM filler").fetchone()
        assert found == (rows, size)
        return int(version)
    finally:
        db.close()
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def campaign(tmp_path: Path, seconds: float) -> None:
    source = Source(tmp_path, 1024)
    source.grow(50)  # something to delete
    source.close()
    connection, files = opened(source.path)
    versions = []
    with script("apply_writer", str(source.path), "1") as a, script("apply_writer", str(source.path), "2") as b:
        for writer in (a, b):
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with PageReader(files, connection) as reader:
                first = whole(reader, 7)
                assert whole(reader) == first
                assert len(first) == reader.header.commit_pages * reader.header.page_size
            versions.append(check(first, tmp_path / "copy.db"))
        commits = [int(writer.communicate("stop\n", PATIENCE_SECONDS)[0]) for writer in (a, b)]
    print(f"{len(versions)} copies, {commits} commits")
    assert versions == sorted(versions)
    assert len(set(versions)) > 3
    closed(connection, files)


def test_what_is_read_is_one_commit_while_writers_checkpoint_and_restart_the_wal(tmp_path: Path) -> None:
    campaign(tmp_path, 4.0)


@pytest.mark.slow
def test_what_is_read_is_one_commit_for_long(tmp_path: Path) -> None:
    campaign(tmp_path, 90.0)


def test_under_read_lock_0_a_restarted_wal_does_not_show(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.grow(10)
    source._checkpoint()
    connection, files = opened(source.path)
    with Sql.on(source.path) as writer:
        writer("UPDATE accounts SET balance = balance + 1 WHERE id = 1")
        assert writer("PRAGMA wal_checkpoint(PASSIVE)")[0][0] == 0
        with PageReader(files, connection) as reader:
            frames = reader.header.mx_frame
            assert frames > 0
            before = whole(reader)
            for _ in range(3):
                writer("UPDATE accounts SET balance = balance + 1")
                writer("INSERT INTO filler (body) VALUES (zeroblob(20000))")
                writer("PRAGMA wal_checkpoint(PASSIVE)")
            assert files.index_header() != reader.header
            assert whole(reader) == before
        with PageReader(files, connection) as reader:
            assert whole(reader) != before
    closed(connection, files)
    source.db.close()


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_pages_come_from_the_wal_the_file_or_both(tmp_path: Path, page_size: int) -> None:
    source = Source(tmp_path, page_size)
    source.db.close()
    connection, files = opened(source.path)
    with Sql.on(source.path) as writer:
        writer("PRAGMA wal_autocheckpoint = 0")
        for step in range(6):
            writer(f"INSERT INTO filler (body) VALUES (zeroblob({page_size * 3 + step}))")
            if step % 3 == 2:
                writer("PRAGMA wal_checkpoint(PASSIVE)")
            with PageReader(files, connection) as reader:
                data = whole(reader, 2)
                assert reader.read(2, 2) == data[page_size : 3 * page_size]
                pages = reader.header.commit_pages
                for first, count in ((0, 1), (pages, 2), (pages + 1, 1), (1, 0)):
                    with pytest.raises(ValueError, match="pages"):
                        reader.read(first, count)
            copy = sqlite3.connect(":memory:")
            copy.deserialize(data[:18] + b"\1\1" + data[20:])  # not in WAL mode: memory has none
            assert copy.execute("SELECT count(*) FROM filler").fetchone() == (step + 1,)
            copy.close()
    closed(connection, files)


def test_the_lock_page_reads_as_zeros(tmp_path: Path) -> None:
    """A sparse database of more than 1 GiB, with bytes where no page is."""
    path = tmp_path / "large.db"
    db = sqlite3.connect(path)
    db.executescript("PRAGMA page_size = 65536; PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
    db.close()
    page = lock_pgno(65536)
    with path.open("r+b") as file:
        file.truncate((page + 2) * 65536)
        file.seek((page - 2) * 65536)
        file.write(b"\x55" * 3 * 65536)
        file.seek(28)
        file.write((page + 2).to_bytes(4, "big"))
    connection, files = opened(path)
    with PageReader(files, connection) as reader:
        assert reader.header.commit_pages == page + 2
        expected = b"\x55" * 65536 + bytes(65536) + b"\x55" * 65536
        # Page `page - 1` and `page` were written; the one in the middle is the lock page.
        assert reader.read(page - 1, 1) == expected[:65536]
        assert reader.read(page, 1) == bytes(65536)
        assert reader.read(page - 1, 2) == expected[: 2 * 65536]
        assert reader.read(page + 1, 1) == b"\x55" * 65536
    closed(connection, files)


def test_frames_are_read_as_records(tmp_path: Path) -> None:
    source = Source(tmp_path)
    connection, files = opened(source.path)
    source.transfer()
    source.grow()
    header = files.index_header()
    assert header is not None
    frames = files.read_frames(1, header.mx_frame, 4096)
    assert frames["pgno"].tolist() == files.frame_pgnos(header.mx_frame).tolist()
    assert np.count_nonzero(frames["commit"]) == 2
    assert (frames["salt"] == header.salt).all()
    space = np.zeros(header.mx_frame * (4096 + 24), np.uint8)
    assert files.read_frames(2, 1, 4096, space)[0] == frames[1]
    with pytest.raises(Corrupt):
        files.read_frames(header.mx_frame, 2, 4096)
    with pytest.raises(Corrupt):
        files.block(1)
    closed(connection, files)
    source.db.close()


def test_a_database_that_is_not_in_wal_mode_has_no_files_to_open(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "plain.db")
    db.execute("CREATE TABLE t (a)")
    db.close()
    with pytest.raises(Unavailable):
        DatabaseFiles(tmp_path / "plain.db")


def test_a_header_that_is_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer may be interrupted between its two copies, for much longer than a read takes."""
    source = Source(tmp_path)
    source.grow(3)
    connection, files = opened(source.path)
    whole_header, torn_until = files.index_header, iter(range(200))
    monkeypatch.setattr(files, "index_header", lambda: whole_header() if next(torn_until, None) is None else None)
    with PageReader(files, connection) as reader:
        assert reader.header == whole_header()
    monkeypatch.setattr(files, "index_header", lambda: None)  # of one that died there, and nobody recovers
    monkeypatch.setattr(dbfiles, "_HEADER_S", 0.05)
    with pytest.raises(Unavailable), PageReader(files, connection):
        pass
    assert not connection.in_transaction
    monkeypatch.undo()
    closed(connection, files)
    source.db.close()
