"""What `--timestamp` means, and how few requests it takes to find out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import History, MemoryStore

from walcast.archive import ArchiveFile, TxidNotAvailable, list_files, ltx_key, plan_restore
from walcast.archive.times import FEW_FILES, timed
from walcast.ltx import FLAG_NO_CHECKSUM, Header
from walcast.moment import format_moment, parse_moment
from walcast.restore import DamagedFile, restore


@pytest.mark.parametrize(
    ("text", "timestamp_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000),
        ("2026-01-31t12:00:00z", 1_769_860_800_000),
        ("2026-01-31 12:00:00", 1_769_860_800_000),
        ("2026-01-31T12:00", 1_769_860_800_000),
        ("2026-01-31", 1_769_817_600_000),
        ("2026-01-31T14:00:00+02:00", 1_769_860_800_000),
        ("2026-01-31T12:00:00.057Z", 1_769_860_800_057),
        ("2026-01-31T12:00:00.0579999Z", 1_769_860_800_057),
        ("2026-01-31T12:00:00.05-00:00", 1_769_860_800_050),
    ],
)
def test_a_time_means(text: str, timestamp_ms: int) -> None:
    assert parse_moment(text) == timestamp_ms
    assert parse_moment(format_moment(timestamp_ms)) == timestamp_ms


@pytest.mark.parametrize(
    "text", ["", "yesterday", "20260131T120000Z", "2026-W05-1", "2026-02-30", "12:00", "1769860800"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="day is out of range" if "30" in text else "not an RFC 3339 time"):
        parse_moment(text)


@given(st.integers(0, 1 << 42))
def test_a_time_is_read_as_it_is_printed(timestamp_ms: int) -> None:
    assert parse_moment(format_moment(timestamp_ms)) == timestamp_ms


def test_a_time_that_no_calendar_has_is_printed_all_the_same() -> None:
    assert format_moment(1 << 62) == f"{1 << 62} ms"


def put(store: MemoryStore, level: int, low: int, high: int, timestamp_ms: int) -> str:
    """Only a header, in a file that may hold a page; uploaded an hour later."""
    key = ltx_key(store, level, low, high)
    head = Header(
        page_size=512, commit_pages=1, min_txid=low, max_txid=high, timestamp_ms=timestamp_ms, flags=FLAG_NO_CHECKSUM
    )
    store.put(key, head.encode() + bytes(100), timestamp_ms=timestamp_ms + 3_600_000)
    return key


def large(count: int = 20_000) -> MemoryStore:
    """A commit a second, by the thousand in level 1, two snapshots."""
    store = MemoryStore()
    for txid in range(2, count + 1):
        put(store, 0, txid, txid, txid * 1000)
    for low in range(1, count, 1000):
        put(store, 1, low, low + 999, (low + 999) * 1000)
    for txid in (1, count // 2):
        put(store, 9, 1, txid, txid * 1000)
    return store


def before(files: list[ArchiveFile], timestamp_ms: int) -> set[str]:
    return {file.key for file in files if file.timestamp_ms <= timestamp_ms}


def test_a_time_among_20000_files_takes_some_15_requests_a_level() -> None:
    store = large()
    files = list_files(store)
    assert len(files) > 20_000
    for timestamp_ms in (999, 1000, 1999, 7_777_000, 19_999_999, 20_000_000, 1 << 50):
        store.requests.clear()
        found = timed(store, files, timestamp_ms)
        assert before(found, timestamp_ms) == {f.key for f in files if f.max_txid * 1000 <= timestamp_ms}
        assert len(store.requests) <= 15 + 5 + 2
        assert {file.key for file in found} == {file.key for file in files}


def test_few_files_are_read_one_by_one_whatever_their_order() -> None:
    store = MemoryStore()
    for txid in range(2, FEW_FILES + 1):
        put(store, 0, txid, txid, 1000 if txid % 3 else 9000)
    put(store, 9, 1, 1, 1000)
    files = list_files(store)
    store.requests.clear()
    assert before(timed(store, files, 5000), 5000) == {f.key for f in files if f.max_txid % 3}
    assert len(store.requests) == FEW_FILES


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 900))
def test_times_are_exact_whatever_is_missing_or_damaged(seed: int, commits: int) -> None:
    choose = random.Random(seed)
    store = MemoryStore()
    times: dict[str, int] = {}
    at = 1000
    for txid in range(1, commits + 1):
        at += choose.choice((0, 0, 1, 5))
        times[put(store, 0, txid, txid, at)] = at
    files = list_files(store)
    for key in choose.sample(list(times), min(len(times), 20)):
        store.delete([key])
        del times[key]
    damaged = set(choose.sample(list(times), min(len(times), 20)))
    for key in damaged:
        store.put(key, b"LTX1 no more", timestamp_ms=0)
    asked = choose.randint(999, at + 1)
    found = before(timed(store, files, asked), asked)
    assert found - damaged == {key for key, when in times.items() if when <= asked and key not in damaged} | (
        found - set(times)
    )
    # A damaged one is left out only where an older one is.
    assert all(times[key] > asked for key in damaged - found)


def test_a_restore_to_a_time_is_inclusive_and_reads_the_files_own_times(tmp_path: Path) -> None:
    history = History(MemoryStore())
    history.commit(60)
    history.put(9, 1, 5)
    for txid in range(6, 61):
        history.put(0, txid, txid)
    for asked, txid in [(5000, 5), (40_000, 40), (40_999, 40), (39_999, 39), (1 << 50, 60)]:
        report = restore(history.store, tmp_path / "app.db", timestamp_ms=asked, force=True)
        assert report.restored is not None
        assert report.restored.position.txid == txid
        assert (tmp_path / "app.db").read_bytes() == history.states[txid]
    with pytest.raises(TxidNotAvailable, match=r"does not reach back to 1970-01-01T00:00:04\.999Z.*00:00:05Z"):
        restore(history.store, tmp_path / "app.db", timestamp_ms=4999, force=True)


def test_a_restore_to_a_time_never_ends_silently_before_a_damaged_file(tmp_path: Path) -> None:
    history = History(MemoryStore())
    history.commit(50)
    history.put(9, 1, 5)
    for txid in range(6, 51):
        history.put(0, txid, txid)
    key = ltx_key(history.store, 0, 40, 40)
    history.store.put(key, b"no header", timestamp_ms=0)
    with pytest.raises(DamagedFile, match=f"{key}.*--txid {39:016x}"):
        restore(history.store, tmp_path / "app.db", timestamp_ms=40_000)
    assert not list(tmp_path.iterdir())
    restore(history.store, tmp_path / "app.db", timestamp_ms=38_000)
    assert (tmp_path / "app.db").read_bytes() == history.states[38]
    history.put(1, 36, 40)
    restore(history.store, tmp_path / "app.db", timestamp_ms=40_000, force=True)
    assert (tmp_path / "app.db").read_bytes() == history.states[40]


def test_a_time_of_a_compacted_range_gives_the_state_before_it() -> None:
    store = large(4000)
    store.delete([ltx_key(store, 0, txid, txid) for txid in range(2, 3001)])
    files = timed(store, list_files(store), 2_500_000)
    assert plan_restore(files, timestamp_ms=2_500_000)[-1].max_txid == 2000
