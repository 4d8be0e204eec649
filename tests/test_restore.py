"""Restoring archives of ours: byte for byte, or an error and nothing at the output path."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.archives import History

from walcast.archive import ArchiveEmpty, ArchiveGap, TxidNotAvailable, list_files, ltx_key, plan_restore
from walcast.checksum import lock_pgno
from walcast.errors import ConfigError, Corrupt, WalcastError
from walcast.ltx import FLAG_NO_CHECKSUM, Encoder, Header, Page
from walcast.restore import DamagedFile, pages_after, restore, restore_to
from walcast.store import ObjectInfo, ObjectMissing, Store, open_store

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "archive")) as opened:
        yield opened


@pytest.fixture
def history(store: Store) -> History:
    """TXIDs 1 to 10: a snapshot at 4, single files after it."""
    made = History(store)
    made.commit(10)
    made.put(9, 1, 4)
    for txid in range(5, 11):
        made.put(0, txid, txid)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "app.db"


def nothing_left(out: Path) -> bool:
    return not out.parent.exists() or not list(out.parent.iterdir())


def test_a_restore_is_the_database_byte_for_byte(history: History, out: Path) -> None:
    report = restore(history.store, out)
    assert out.read_bytes() == history.states[10]
    assert report.restored is not None
    assert report.restored.position.txid == 10
    assert report.restored.position.checksum == history.checksum(10)
    assert (report.restored.term, report.restored.files) == (7, 7)
    assert report.restored.bytes_downloaded == sum(file.size for file in report.plan)
    assert [path.name for path in out.parent.iterdir()] == ["app.db"]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_is_restored(store: Store, out: Path, page_size: int) -> None:
    history = History(store, page_size, seed=page_size)
    history.commit(6)
    history.put(9, 1, 3, checksums=True)
    history.put(1, 2, 5, checksums=True)
    history.put(0, 6, 6)
    restore(store, out)
    assert out.read_bytes() == history.states[6]


@pytest.mark.parametrize("txid", range(4, 11))
def test_a_txid_is_restored_exactly(history: History, out: Path, txid: int) -> None:
    restore(history.store, out, txid=txid)
    assert out.read_bytes() == history.states[txid]


def test_a_time_is_read_from_the_files_themselves(history: History, out: Path) -> None:
    for file in list_files(history.store):
        history.store.put(file.key, history.store.get(file.key), timestamp_ms=1)  # as a copied archive has
    restore(history.store, out, timestamp_ms=7999)
    assert out.read_bytes() == history.states[7]


@pytest.mark.parametrize("seed", range(20))
def test_any_overlapping_files_come_to_the_same_database(store: Store, out: Path, seed: int) -> None:
    choose = random.Random(seed)
    history = History(store, seed=seed)
    history.commit(12)
    history.put(9, 1, choose.randint(1, 8))
    for txid in range(2, 13):
        history.put(0, txid, txid)
    for level in (1, 2, 3):
        low = choose.randint(1, 9)
        history.put(level, low, choose.randint(low, 12))
    restore(store, out, parallelism=choose.randint(1, 5))
    assert out.read_bytes() == history.states[12]


def test_pages_that_a_smaller_commit_cut_off_do_not_come_back(store: Store, out: Path) -> None:
    history = History(store)
    page = bytes(range(256)) * 2
    history.states |= {1: page * 9, 2: page * 2, 3: page * 2 + bytes(512 * 5)}
    history.put(9, 1, 1)
    history.put(0, 2, 2)
    size = 512
    header = Header(page_size=size, commit_pages=7, min_txid=3, max_txid=3, timestamp_ms=0, flags=FLAG_NO_CHECKSUM)
    body = bytearray()
    encoder = Encoder(header, body.extend)
    encoder.add(7, bytes(size))
    encoder.finish()
    store.put(ltx_key(store, 0, 3, 3), bytes(body), timestamp_ms=0)
    restore(store, out)
    assert out.read_bytes() == history.states[3]


def test_what_is_there_is_kept_without_force(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    for name in ("app.db", "app.db-wal", "app.db-journal"):
        kept = tmp_path / name
        kept.write_bytes(b"mine")
        with pytest.raises(ConfigError, match="--force"):
            restore(history.store, out)
        assert kept.read_bytes() == b"mine"
        kept.unlink()
    out.write_bytes(b"mine")
    report = restore(history.store, out, if_db_not_exists=True)
    assert report.skipped == "the database exists"
    assert out.read_bytes() == b"mine"
    out.unlink()
    assert restore(history.store, out, if_db_not_exists=True).restored is not None


def test_force_replaces_the_database_and_its_side_files(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    for suffix in ("", "-wal", "-shm", "-journal"):
        out.with_name("app.db" + suffix).write_bytes(b"old")
    restore(history.store, out, force=True)
    assert out.read_bytes() == history.states[10]
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "archive"}


def test_a_failed_restore_with_force_keeps_the_database(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    out.write_bytes(b"mine")
    key = history.put(0, 10, 10, lie=1 << 5)
    with pytest.raises(DamagedFile, match=key):
        restore(history.store, out, force=True)
    assert out.read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "archive"}


def test_a_dry_run_writes_nothing(history: History, out: Path) -> None:
    report = restore(history.store, out, dry_run=True)
    assert [file.max_txid for file in report.plan] == [4, 5, 6, 7, 8, 9, 10]
    assert report.restored is None
    assert not out.parent.exists()


def test_an_empty_archive_is_an_error_or_a_reason_to_do_nothing(store: Store, out: Path) -> None:
    with pytest.raises(ArchiveEmpty):
        restore(store, out)
    assert restore(store, out, if_replica_exists=True).skipped == "the archive is empty"
    assert nothing_left(out)


def test_a_gap_and_a_txid_past_the_end_leave_nothing(history: History, out: Path) -> None:
    with pytest.raises(TxidNotAvailable):
        restore(history.store, out, txid=11)
    history.store.delete([ltx_key(history.store, 0, 7, 7)])
    with pytest.raises(ArchiveGap) as caught:
        restore(history.store, out)
    assert (caught.value.have, caught.value.next_min) == (6, 8)
    assert nothing_left(out)


def damage(store: Store, key: str, how: str) -> None:
    body = bytearray(store.get(key))
    if how == "flip in a page":
        body[130] ^= 0x10
    elif how == "flip in the trailer":
        body[-1] ^= 1
    elif how == "flip in the header":
        body[0] ^= 1
    elif how == "cut off":
        del body[-20:]
    elif how == "cut to nothing":
        body.clear()
    elif how == "longer":
        body += b"more"
    store.put(key, bytes(body), timestamp_ms=0)


DAMAGES = ["flip in a page", "flip in the trailer", "flip in the header", "cut off", "cut to nothing", "longer"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("txid", [4, 7])
def test_a_damaged_file_is_named_and_nothing_is_written(history: History, out: Path, how: str, txid: int) -> None:
    key = ltx_key(history.store, 9, 1, 4) if txid == 4 else ltx_key(history.store, 0, txid, txid)
    damage(history.store, key, how)
    with pytest.raises(DamagedFile) as caught:
        restore(history.store, out)
    assert caught.value.file.key == key
    assert ("--txid 0000000000000006" in str(caught.value)) == (txid == 7)
    assert nothing_left(out)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_gone_around_when_others_cover_it(history: History, out: Path, how: str) -> None:
    history.put(9, 1, 2)
    history.put(2, 2, 4)
    spoiled = [ltx_key(history.store, 9, 1, 4), history.put(1, 5, 9)]
    for key in spoiled:
        damage(history.store, key, how)
    report = restore(history.store, out)
    assert out.read_bytes() == history.states[10]
    assert list(report.went_around) == spoiled


def test_a_file_under_anothers_name_is_damage(history: History, out: Path) -> None:
    history.store.put(
        ltx_key(history.store, 0, 10, 10), history.store.get(ltx_key(history.store, 0, 9, 9)), timestamp_ms=0
    )
    with pytest.raises(DamagedFile, match="not those of its name"):
        restore(history.store, out)


def test_a_wrong_database_checksum_is_damage(history: History, out: Path) -> None:
    history.put(0, 8, 8, lie=1)
    with pytest.raises(DamagedFile, match="database checksum"):
        restore(history.store, out)
    assert nothing_left(out)


class Compacts:
    """A store in which compaction runs between the first listing and the first download."""

    def __init__(self, history: History) -> None:
        self._store = history.store
        self._history: History | None = history

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from self._store.list(prefix)
        if prefix == self._store.level_prefix(9) and self._history is not None:
            self._history.put(1, 5, 8)
            self._store.delete([ltx_key(self._store, 0, txid, txid) for txid in range(5, 9)])
            self._history = None


def test_files_that_compaction_replaces_meanwhile_are_found_again(history: History, out: Path) -> None:
    report = restore(Compacts(history), out)  # type: ignore[arg-type]
    assert out.read_bytes() == history.states[10]
    assert report.went_around


def test_a_missing_object_is_named(history: History, tmp_path: Path) -> None:
    plan = plan_restore(list_files(history.store))
    history.store.delete([plan[3].key])
    with pytest.raises(ObjectMissing) as caught:
        restore_to(history.store, plan, tmp_path / "t")
    assert caught.value.key == plan[3].key


def test_integrity_checks_are_sqlites(store: Store, tmp_path: Path, out: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t(a)")
        db.executemany("insert into t values(?)", [(i,) for i in range(5000)])
        db.commit()
    state = (tmp_path / "a.db").read_bytes()
    history = History(store, 4096)
    history.states[1] = state
    history.put(9, 1, 1)
    for kind in ("quick", "full"):
        restore(store, out, integrity_check=kind, force=True)  # type: ignore[arg-type]
        assert [path.name for path in out.parent.iterdir()] == ["app.db"]
    history.states[1] = state[: 4096 * 2] + bytes(4096) + state[4096 * 3 :]
    history.put(9, 1, 1)
    out.unlink()
    with pytest.raises(Corrupt, match="quick_check"):
        restore(store, out, integrity_check="quick")
    assert nothing_left(out)


def test_an_output_that_cannot_be_written_is_a_configuration_error(history: History, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file/app.db", tmp_path):
        with pytest.raises(ConfigError):
            restore(history.store, output)


def test_progress_reaches_its_total(history: History, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = restore(history.store, out, progress=lambda done, total: seen.append((done, total)))
    total = sum(file.size for file in report.plan)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_pages_after_a_txid_come_file_by_file(history: History) -> None:
    plan = plan_restore(list_files(history.store), after_txid=6)
    state = bytearray(history.states[6])
    for header, pages in pages_after(history.store, plan):
        del state[header.commit_pages * 512 :]
        state += bytes(header.commit_pages * 512 - len(state))
        for page in pages:
            assert isinstance(page, Page)
            state[(page.pgno - 1) * 512 : page.pgno * 512] = page.data
    assert bytes(state) == history.states[10]


def test_pages_nobody_took_are_verified_all_the_same(history: History) -> None:
    plan = plan_restore(list_files(history.store), after_txid=6)
    assert [header.max_txid for header, _ in pages_after(history.store, plan)] == [7, 8, 9, 10]
    damage(history.store, plan[1].key, "flip in the trailer")
    with pytest.raises(DamagedFile) as caught:
        list(pages_after(history.store, plan))
    assert caught.value.file == plan[1]
    history.store.delete([plan[0].key])
    with pytest.raises(WalcastError):
        list(pages_after(history.store, plan))


@pytest.mark.slow
def test_a_database_past_the_lock_page_is_restored_without_it(store: Store, out: Path) -> None:
    page_size = 65536
    lock = lock_pgno(page_size)
    count = lock + 20
    header = Header(
        page_size=page_size, commit_pages=count, min_txid=1, max_txid=1, timestamp_ms=0, flags=FLAG_NO_CHECKSUM
    )
    body = bytearray()
    encoder = Encoder(header, body.extend)
    for pgno in range(1, count + 1):
        if pgno != lock:
            encoder.add(pgno, pgno.to_bytes(4, "big") * (page_size // 4))
    encoder.finish()
    store.put(ltx_key(store, 9, 1, 1), bytes(body), timestamp_ms=0)
    restore(store, out)
    assert out.stat().st_size == count * page_size
    with out.open("rb") as file:
        for pgno in range(1, count + 1):
            expected = bytes(page_size) if pgno == lock else pgno.to_bytes(4, "big") * (page_size // 4)
            assert file.read(page_size) == expected
