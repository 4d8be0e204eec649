"""A hostile or damaged archive costs a restore an error, and a follower a fallback to its primary; nothing more."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import lz4.frame
import pytest
from support.archives import History, MemoryStore
from support.archiving import archived, archiving, compact_now, levels
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.nodes import follower, poll, primary, wait_level
from support.writers import sql

from walcast import shortage
from walcast.archive import ArchiveFile, list_files, ltx_key
from walcast.archive.damage import DamagedFile
from walcast.archive.reading import file_events, read_header
from walcast.errors import Corrupt, DiskFull
from walcast.ltx import FLAG_NO_CHECKSUM, HEADER_SIZE, Encoder, Header
from walcast.ltx.possible import end_max, pages_max
from walcast.moment import TIMESTAMP_MAX_MS
from walcast.position import CHECKSUM_FLAG
from walcast.restore import generations as restore_generations
from walcast.restore import restore, restore_to
from walcast.restore.verify import verify_archive
from walcast.statedir import StateDir
from walcast.store.directory import DirectoryStore
from walcast.terms import TERM_MAX, TERM_STEP_MAX
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.bootstrap import archived_since, from_archive
from walcast_follower.bootstrap.rebase import newest_term
from walcast_primary.archiving.compaction import compact, prove

COMMIT = "UPDATE accounts SET balance = balance + 1"
NEWER = 0xFF  # a TXID that the archive does not have
MEMORY_BYTES = 1 << 30
# In a process of its own, whose memory has a bound: what allocates by what it is told fails here.
BOUNDED = """
import json, resource, sys
from pathlib import Path
from walcast.errors import WalcastError
from walcast.restore import restore
from walcast.restore.verify import sample_archive
from walcast.store.directory import DirectoryStore
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
store, out = DirectoryStore(Path(sys.argv[1])), Path(sys.argv[2])
said = []
for work in (lambda: restore(store, out), lambda: sample_archive(store)):
    try:
        work()
        said.append("done")
    except WalcastError as error:
        said.append(type(error).__name__)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([said, int(peak.split()[1]) << 10]))
"""


def header(
    commit: int, low: int = 1, high: int = NEWER, *, size: int = 4096, checksum: int = 0, term: int = 0, at_ms: int = 1
) -> Header:
    return Header(
        page_size=size,
        commit_pages=commit,
        min_txid=low,
        max_txid=high,
        timestamp_ms=at_ms,
        flags=FLAG_NO_CHECKSUM,
        database_checksum=checksum,
        term=term,
    )


def zeros(head: Header, *pgnos: int) -> bytes:
    """A whole file with pages of nothing, the most that a file can hold."""
    body = bytearray()
    encoder = Encoder(head, body.extend)
    for pgno in pgnos:
        encoder.add(pgno, bytes(head.page_size))
    encoder.finish()
    return bytes(body)


def begun(head: Header, *pgnos: int) -> bytes:
    """A file that is cut off behind these pages."""
    body = bytearray()
    encoder = Encoder(head, body.extend)
    for pgno in pgnos:
        encoder.add(pgno, bytes(head.page_size))
    return bytes(body)


def put(store: DirectoryStore, low: int, high: int, data: bytes, *, claims: int = 0, level: int = 9) -> ArchiveFile:
    """An object; with `claims` a sparse file of so many bytes."""
    key = ltx_key(store, level, low, high)
    store.put(key, data, timestamp_ms=1)
    if claims:
        os.truncate(store.root / key, claims)
    return next(file for file in list_files(store) if file.key == key)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """An archive of three transactions."""
    made = DirectoryStore(tmp_path / "archive")
    history = History(made)
    history.commit(3)
    for level, low, high in ((9, 1, 1), (0, 2, 2), (0, 3, 3)):
        history.put(level, low, high)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "app.db"


def bounded(store: DirectoryStore, out: Path, memory_bytes: int = MEMORY_BYTES) -> tuple[list[str], int]:
    """What a restore and a sample end with, and the most memory that was resident."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(store.root), str(out), str(memory_bytes)],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=True,
    )
    said, peak = json.loads(done.stdout)
    return said, peak


@pytest.mark.parametrize("size", [512, 1024, 4096, 32768, 65536])
def test_no_file_holds_more_pages_than_its_size_allows(size: int) -> None:
    for count in (1, 2, 50, 300):
        body = zeros(header(count, size=size), *range(1, count + 1))
        assert count <= pages_max(size, len(body)) < 2 * count + 10
        pages = begun(header(count, size=size), *range(1, count + 1))
        assert len(body) - len(pages) <= end_max(count)


LIES: dict[str, tuple[Header, tuple[int, ...], int]] = {
    "pages without end in 100 bytes": (header(0xFFFFFFFE), (), 0),
    "pages without end, one of them is there": (header(0xFFFFFFFE), (1,), 0),
    "pages without end in a file that claims a terabyte": (header(0xFFFFFFFE), (1,), 1 << 40),
    "the largest pages, and all the room there is": (header(30_000_000, size=65536), tuple(range(1, 400)), 0),
    "zeros without end behind the pages": (header(2), (1, 2), 1 << 40),
    "zeros where pages should be": (header(40_000_000), (1, 2), 4 << 30),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_snapshot_that_lies_costs_an_error_no_memory_and_no_file(store: DirectoryStore, out: Path, lie: str) -> None:
    head, pgnos, claims = LIES[lie]
    put(store, 1, NEWER, begun(head, *pgnos), claims=claims)
    said, peak_bytes = bounded(store, out)
    assert said[0] in ("DamagedFile", "DiskFull")
    assert said[1] == "done"
    assert peak_bytes < 150 << 20
    assert not out.parent.exists()
    assert restore(store, out, txid=3).restored is not None


def test_a_page_index_that_claims_all_of_a_file_is_not_read(store: DirectoryStore, out: Path) -> None:
    claims = 3 << 30
    file = put(store, 1, NEWER, begun(header(2), 1, 2), claims=claims)
    with (store.root / file.key).open("r+b") as body:
        body.seek(claims - 24)
        body.write((claims - HEADER_SIZE - 200).to_bytes(8, "big"))
    said, peak_bytes = bounded(store, out)
    assert said == ["DamagedFile", "done"]
    assert peak_bytes < 150 << 20


def test_the_target_grows_with_the_pages_that_come_and_never_by_what_is_announced(
    store: DirectoryStore, tmp_path: Path
) -> None:
    file = put(store, 1, NEWER, begun(header(100_000), *range(1, 11)), claims=8 << 20)
    target = tmp_path / "target"
    with pytest.raises(DamagedFile):
        restore_to(store, [file], target)
    assert target.stat().st_size <= 10 * 4096


@pytest.mark.parametrize("checksum", [0, CHECKSUM_FLAG])
def test_a_transaction_cannot_announce_what_it_does_not_bring(store: DirectoryStore, out: Path, checksum: int) -> None:
    put(store, 4, 4, zeros(header(0xFFFFFFFE, 4, 4, size=512, checksum=checksum), 1), level=0)
    with pytest.raises(DamagedFile):
        restore(store, out)
    assert not out.parent.exists()


def test_what_does_not_fit_is_told_before_it_is_written(
    store: DirectoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, 1, NEWER, zeros(header(300), *range(1, 301)))
    monkeypatch.setattr(shortage, "free_bytes", lambda path: 300 * 4096 - 1)
    with pytest.raises(DiskFull) as caught:
        restore(store, out)
    assert caught.value.needed_bytes == 300 * 4096
    monkeypatch.setattr(shortage, "free_bytes", lambda path: 300 * 4096)
    report = restore(store, out)
    assert report.restored is not None
    assert out.stat().st_size == 300 * 4096


def test_what_comes_after_a_whole_file_is_damage_that_is_found_at_once(store: DirectoryStore, out: Path) -> None:
    file = put(store, 1, NEWER, zeros(header(2), 1, 2), claims=1 << 40)
    with pytest.raises(DamagedFile):
        list(file_events(store, file))
    with pytest.raises(Corrupt):
        prove(store, file.key)
    with pytest.raises(Corrupt):
        compact(store, [file], lambda data: None)
    with pytest.raises(DamagedFile):
        restore(store, out)


@pytest.mark.parametrize("lie", [{"term": TERM_MAX + 1}, {"at_ms": -1}, {"at_ms": TIMESTAMP_MAX_MS + 1}])
def test_terms_and_times_that_cannot_be_are_damage(store: DirectoryStore, out: Path, lie: dict[str, int]) -> None:
    file = put(store, 1, NEWER, zeros(header(2, **lie), 1, 2))
    with pytest.raises(DamagedFile):
        read_header(store, file)
    with pytest.raises(DamagedFile):
        list(file_events(store, file))
    with pytest.raises(DamagedFile):
        restore(store, out)
    assert not out.parent.exists()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the plans that were tried."""
    tried: list[int] = []

    def attempt(store: object, plan: list[ArchiveFile], *args: object, **more: object) -> object:
        tried.append(len(plan))
        return restore_to(store, plan, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("walcast.restore.restoring.restore_to", attempt)
    return tried


def long_history(count: int) -> History:
    history = History(MemoryStore())  # type: ignore[arg-type]
    history.commit(count)
    history.put(9, 1, 1)
    for txid in range(2, count + 1):
        history.put(0, txid, txid)
    return history


def test_of_800_damaged_snapshots_few_are_tried_before_the_whole_one(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, tried = long_history(802), counted(monkeypatch)
    for txid in range(2, 802):
        history.store.put(ltx_key(history.store, 9, 1, txid), b"x" * 200, timestamp_ms=0)
    report = restore(history.store, out)
    assert out.read_bytes() == history.states[802]
    assert len(report.went_around) == 800
    assert len(tried) <= 5


def test_of_150_snapshots_that_only_seem_whole_the_oldest_is_tried_in_time(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, tried = long_history(152), counted(monkeypatch)
    for txid in range(2, 152):
        key = history.put(9, 1, txid)
        body = bytearray(history.store.get(key))
        body[HEADER_SIZE + 12] ^= 0xFF
        history.store.put(key, bytes(body), timestamp_ms=0)
    restore(history.store, out)
    assert out.read_bytes() == history.states[152]
    assert len(tried) <= 15


def test_800_damaged_snapshots_of_what_nothing_else_has_are_one_error_that_names_what_restores(
    store: DirectoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = counted(monkeypatch)
    for number in range(800):
        (store.root / ltx_key(store, 9, 1, 0x1000 + number)).write_bytes(b"x" * 200)
    with pytest.raises(DamagedFile) as caught:
        restore(store, out)
    assert len(tried) == 1
    assert caught.value.what.endswith(f"restores to --txid {3:016x}")
    assert verify_archive(store).position is None


# Archives of Litestream 0.3

GENERATION = "generations/0123456789abcdef"


def old_archive(folder: Path, snapshots: dict[int, bytes]) -> DirectoryStore:
    store = DirectoryStore(folder)
    for index, data in snapshots.items():
        store.put(f"{GENERATION}/snapshots/{index:08x}.snapshot.lz4", data, timestamp_ms=1000 + index)
    return store


def packed(data: bytes, more_zeros: int = 0) -> bytes:
    compressor = lz4.frame.LZ4FrameCompressor()
    pieces = [compressor.begin(), compressor.compress(data)]
    for _ in range(more_zeros >> 20):
        pieces.append(compressor.compress(bytes(1 << 20)))
    return b"".join([*pieces, compressor.flush()])


@pytest.fixture
def database(tmp_path: Path) -> bytes:
    path = tmp_path / "source.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
        db.commit()
    return path.read_bytes()


def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ends of all that is written to the target."""
    ends = [0]
    write_all = restore_generations.write_all

    def write(descriptor: int, data: bytes, offset: int) -> None:
        ends.append(offset + len(data))
        write_all(descriptor, data, offset)

    monkeypatch.setattr(restore_generations, "write_all", write)
    return ends


def test_an_old_snapshot_that_unpacks_to_nothing_but_zeros_is_refused_before_it_is_written(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = largest(monkeypatch)
    with pytest.raises(DamagedFile):
        restore(old_archive(tmp_path / "a", {0: packed(b"", 256 << 20)}), out)
    assert max(ends) == 0


def test_an_old_snapshot_is_written_up_to_the_size_that_its_database_announces(
    tmp_path: Path, out: Path, database: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = largest(monkeypatch)
    old = old_archive(tmp_path / "a", {0: packed(database, 64 << 20)})
    assert restore(old, out, integrity_check="full").restored is not None
    assert out.read_bytes() == database
    assert max(ends) == len(database)
    monkeypatch.setattr(restore_generations, "_BEYOND_BYTES", 1 << 20)
    with pytest.raises(DamagedFile):
        restore(old, out, force=True)
    assert out.read_bytes() == database


def test_an_old_snapshot_leaves_room_on_the_disk(
    tmp_path: Path, out: Path, database: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = database[:28] + (1 << 31).to_bytes(4, "big") + database[32:]
    ends = largest(monkeypatch)
    old = old_archive(tmp_path / "a", {0: packed(announced, 64 << 20)})
    monkeypatch.setattr(shortage, "free_bytes", lambda path: (32 << 20) - max(ends))
    with pytest.raises(DiskFull):
        restore(old, out)
    assert max(ends) < 32 << 20
    unknown = database[:24] + b"\xff" + database[25:28] + bytes(4) + database[32:]  # as an old SQLite leaves it
    with pytest.raises(DiskFull):
        restore(old_archive(tmp_path / "b", {0: packed(unknown, 64 << 20)}), out)
    assert max(ends) < 32 << 20


def test_800_damaged_old_snapshots_are_an_error_of_the_newest_and_the_whole_one_before_them_is_found_by_its_time(
    tmp_path: Path, out: Path, database: bytes
) -> None:
    """A restore takes no older state by itself where no WAL leads from it to the newest one."""
    old = old_archive(tmp_path / "a", {0: packed(database)})
    for index in range(1, 801):
        (old.root / GENERATION / "snapshots" / f"{index:08x}.snapshot.lz4").write_bytes(b"x" * 200)
    with pytest.raises(DamagedFile) as caught:
        restore(old, out)
    assert caught.value.file.key == f"{GENERATION}/snapshots/{800:08x}.snapshot.lz4"
    assert not out.exists()
    assert restore(old, out, timestamp_ms=1000).restored is not None
    assert out.read_bytes() == database


# Followers and primaries


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


def write(app: Served, commits: int) -> None:
    with sql(app.path) as stock:
        for _ in range(commits):
            stock(COMMIT)


FORGED: dict[str, Callable[[int, int], bytes]] = {
    "other pages": lambda low, size: zeros(header(1, low, low, size=2 * size), 1),
    "a size without end": lambda low, size: zeros(header(0xFFFFFFFE, low, low, size=size), 1),
    "a checksum that is none": lambda low, size: zeros(header(1, low, low, size=size, checksum=CHECKSUM_FLAG), 1),
    "a term far above": lambda low, size: zeros(header(1, low, low, size=size, term=TERM_STEP_MAX + 2), 1),
    "a term above all": lambda low, size: zeros(header(1, low, low, size=size, term=2**32 - 1), 1),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_replica_takes_nothing_of_a_file_that_cannot_be(app: Served, tmp_path: Path, how: str) -> None:
    store, edge = DirectoryStore(tmp_path / "archive"), tmp_path / "f" / "app.db"
    edge.parent.mkdir()
    with closing(StateDir(edge)) as state:
        with archiving(app, store) as archiver:
            write(app, 2)
            assert archived(app, archiver)
        with closing(Applier.open(edge, state.path, from_archive(store, edge, state.path))) as applier:
            before, low = applier.position, applier.position.txid + 1
            put(store, low, low, FORGED[how](low, applier.page_size), level=0)
            with pytest.raises((Corrupt, Exception)) as caught:
                archived_since(store, applier)
            expected = ("DamagedFile",) if "term" in how else ("DamagedFile", "ChecksumMismatch", "ProtocolViolation")
            assert type(caught.value).__name__ in expected
            assert newest_term(store, applier.term) == 0
            assert applier.position == before
            applier.check_usable()


def test_a_primary_bridges_inputs_that_lie(app: Served, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "archive")
    with archiving(app, store) as archiver:
        write(app, 3)
        assert archived(app, archiver)
        write(app, 1)
        assert archived(app, archiver)
        victim = max(levels(store)[0], key=lambda file: file.max_txid)
        os.truncate(store.root / victim.key, 1 << 40)
        compact_now(archiver)
        assert archiver.error is None
    assert restore(store, tmp_path / "restored.db", integrity_check="full").restored is not None


def test_a_name_cannot_lead_a_primary_to_where_txids_end(app: Served, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "archive")
    put(store, 1, (1 << 61), b"x" * 200)
    before = app.position.txid
    with archiving(app, store) as archiver:
        assert poll(lambda: archiver.error)
        assert "remove it" in str(archiver.error)
        write(app, 1)
        assert app.position.txid < before + 100


def test_a_follower_falls_back_to_its_primary_with_one_line(tmp_path: Path) -> None:
    db, store = tmp_path / "app.db", DirectoryStore(tmp_path / "archive")
    create(db)
    with primary(db, store.root) as one:
        assert poll(lambda: list_files(store))
        os.mkfifo(store.root / ltx_key(store, 9, 1, NEWER + 1))
        endless = begun(header(0xFFFFFFFE), 1)
        for number, (data, claims) in enumerate([(endless, 0), (endless, 1 << 40), (b"x" * 200, 0)]):
            put(store, 1, NEWER, data, claims=claims)
            replica = tmp_path / f"edge{number}" / "app.db"
            with follower(replica, one.address, "--archive", store.root) as other:
                wait_level(one.address, replica)
                warnings = [line["event"] for line in other.events() if line["level"] in ("warning", "error")]
                assert warnings == ["cannot bootstrap from the archive"]
