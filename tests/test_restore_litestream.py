"""Archives of the real Litestream are restored as it restores them, and it restores ours; in a directory and on S3."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.s3 import S3Server, rclone_s3

from walcast.archive import list_files, ltx_key, plan_restore
from walcast.archive.contents import contents_of
from walcast.checksum import PageChecksums
from walcast.ltx import FLAG_NO_CHECKSUM, Encoder, Header
from walcast.restore import restore
from walcast.restore.verify import verify_archive
from walcast.store import DirectorySpec, Store, StoreSpec, open_store

DEADLINE_S = 30
LITESTREAM = Path(sys.executable).with_name("litestream")


@dataclass
class Place:
    """Where an archive lives, for both programs."""

    spec: StoreSpec
    environment: dict[str, str]

    @property
    def litestream_url(self) -> str:
        return self.spec.url.replace("path-style=", "force-path-style=")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "directory":
        yield Place(DirectorySpec(tmp_path / "archive"), dict(os.environ))
    else:
        server: S3Server = request.getfixturevalue("server")
        yield Place(server.spec(f"deep/{request.node.originalname}"), server.environment())


def test_litestreams_archive_is_restored_as_litestream_does(place: Place, tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    with (
        replicating(place, database, tmp_path),
        closing(sqlite3.connect(database)) as db,
        open_store(place.spec) as store,
    ):
        db.execute("pragma journal_mode = wal")
        write(db, 1)
        until(lambda: newest(store) > 0)
        first = newest(store)
        write(db, 2)
        until(lambda: newest(store) > first)
        write(db, 3)
        db.execute("vacuum")
        want = db.execute("select count(*), sum(length(b)) from t").fetchall()
        # Litestream syncs once a second; its last file is the one after which nothing new comes.
        until(lambda: settled(store))
    with open_store(place.spec) as store:
        files = list_files(store)
        verified = verify_archive(store, scratch=tmp_path)
        assert (verified.problems, verified.notes, verified.files_read) == ([], [], len(files))
        contents = contents_of(store)
        assert contents.restorable[-1].last.txid == contents.newest_txid == max(file.max_txid for file in files)
        assert contents.holes == ()
        theirs = litestream_restore(place, tmp_path / "theirs.db")
        report = restore(store, tmp_path / "ours.db", integrity_check="full")
        assert (tmp_path / "ours.db").read_bytes() == theirs
        assert report.restored is not None
        with closing(sqlite3.connect(tmp_path / "ours.db")) as db:
            assert db.execute("select count(*), sum(length(b)) from t").fetchall() == want
        ends = sorted({file.max_txid for file in files})
        for txid in [ends[0], ends[len(ends) // 2]]:
            output = tmp_path / f"ours-{txid}.db"
            restore(store, output, txid=txid)
            assert output.read_bytes() == litestream_restore(
                place, tmp_path / f"theirs-{txid}.db", "-txid", f"{txid:016x}"
            )


def test_litestream_restores_what_we_archive(place: Place, tmp_path: Path) -> None:
    choose = random.Random(7)
    state = make_database(tmp_path / "app.db", 4096)
    with open_store(place.spec) as store:
        put(store, 9, 1, 3, b"", state)
        states = {3: state}
        for low, high in [(4, 4), (5, 9), (10, 10)]:
            changed = bytearray(state)
            for _ in range(3):
                at = choose.randrange(4096, len(changed) - 8)
                changed[at : at + 8] = choose.randbytes(8)
            put(store, 0, low, high, state, bytes(changed))
            state = states[high] = bytes(changed)
        for txid, expected in states.items():
            output = tmp_path / f"ours-{txid}.db"
            restore(store, output, txid=txid)
            assert output.read_bytes() == expected
            assert litestream_restore(place, tmp_path / f"theirs-{txid}.db", "-txid", f"{txid:016x}") == expected


@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_litestream_restores_every_page_size(tmp_path: Path, page_size: int) -> None:
    place = Place(DirectorySpec(tmp_path / "archive"), dict(os.environ))
    state = make_database(tmp_path / "app.db", page_size)
    with open_store(place.spec) as store:
        put(store, 9, 1, 1, b"", state, page_size)
        restore(store, tmp_path / "ours.db")
    assert (tmp_path / "ours.db").read_bytes() == state
    assert litestream_restore(place, tmp_path / "theirs.db") == state


@contextmanager
def replicating(place: Place, database: Path, folder: Path) -> Iterator[None]:
    """`litestream replicate`, ended when the archive has what was written."""
    with (folder / "litestream.log").open("wb") as log, closing(sqlite3.connect(database)) as db:
        db.execute("pragma journal_mode = wal")
        command = [str(LITESTREAM), "replicate", str(database), place.litestream_url]
        with subprocess.Popen(command, env=place.environment, stdout=log, stderr=log) as process:
            try:
                yield
            finally:
                process.terminate()
                try:
                    process.wait(DEADLINE_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def litestream_restore(place: Place, output: Path, *more: str) -> bytes:
    command = [str(LITESTREAM), "restore", *more, "-o", str(output), place.litestream_url]
    done = subprocess.run(command, env=place.environment, capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return output.read_bytes()


def write(db: sqlite3.Connection, seed: int) -> None:
    blobs = random.Random(seed)
    db.execute("create table if not exists t (a integer primary key, b blob)")
    for _ in range(20):
        with db:
            db.executemany("insert into t (b) values (?)", [(blobs.randbytes(900),) for _ in range(10)])
            db.execute("delete from t where a % 7 = ?", (blobs.randrange(7),))


def make_database(path: Path, page_size: int) -> bytes:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma page_size = {page_size}")
        write(db, page_size)
    return path.read_bytes()


def put(store: Store, level: int, low: int, high: int, before: bytes, after: bytes, size: int = 4096) -> None:
    header = Header(
        page_size=size,
        commit_pages=len(after) // size,
        min_txid=low,
        max_txid=high,
        timestamp_ms=1_750_000_000_000 + high,
        flags=FLAG_NO_CHECKSUM,
        database_checksum=PageChecksums.scan(size, iter([(1, after)])).database,
        term=1,
    )
    body = bytearray()
    encoder = Encoder(header, body.extend)
    for pgno in range(1, header.commit_pages + 1):
        window = slice((pgno - 1) * size, pgno * size)
        if before[window] != after[window]:
            encoder.add(pgno, after[window])
    encoder.finish()
    store.put(ltx_key(store, level, low, high), bytes(body), timestamp_ms=header.timestamp_ms)


def newest(store: Store) -> int:
    return max((file.max_txid for file in list_files(store, [0])), default=0)


def settled(store: Store) -> bool:
    """Nothing new for longer than Litestream's second."""
    before = newest(store)
    time.sleep(1.6)
    return newest(store) == before and bool(plan_restore(list_files(store)))


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline, "Litestream did not archive in time"
        time.sleep(0.05)
