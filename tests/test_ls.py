"""`walcast ls`: what an archive holds, against a dumb count of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import History, MemoryStore
from support.run_command import run

from walcast.archive import ArchiveFile, list_files, ltx_key
from walcast.archive.contents import Hole, contents_of, holes_between, restorable_ranges
from walcast.store import open_store
from walcast_node.commands.ls import ls_command


def archive(store: object, *files: tuple[int, int, int]) -> History:
    history = History(store)  # type: ignore[arg-type]
    history.commit(30)
    for part in files:
        history.put(*part)
    return history


def singles(low: int, high: int) -> list[tuple[int, int, int]]:
    return [(0, txid, txid) for txid in range(low, high + 1)]


def test_levels_snapshots_and_the_restorable_range_are_shown() -> None:
    store = MemoryStore()
    archive(store, (9, 1, 4), (9, 1, 20), *singles(15, 30), (1, 5, 14), (1, 15, 20))
    found = contents_of(store)
    levels = {level.level: level for level in found.levels}
    assert (levels[0].files, levels[0].min_txid, levels[0].last.txid) == (16, 15, 30)
    assert (levels[1].files, levels[1].min_txid, levels[1].last.txid) == (2, 5, 20)
    assert (levels[0].first.timestamp_ms, levels[0].last.timestamp_ms) == (15_000, 30_000)
    assert sum(level.bytes for level in found.levels) == sum(file.size for file in list_files(store))
    assert [(s.file.max_txid, s.timestamp_ms) for s in found.snapshots] == [(4, 4000), (20, 20_000)]
    (only,) = found.restorable
    assert (only.first.txid, only.first.timestamp_ms) == (4, 4000)
    assert (only.last.txid, only.last.timestamp_ms) == (30, 30_000)
    assert only.states == 1 + 1 + 16  # the snapshot at 4, level 1 to 14, each of level 0
    assert found.holes == ()
    assert found.newest_txid == 30


def test_holes_are_named_where_they_cost_something_and_where_they_do_not() -> None:
    store = MemoryStore()
    archive(store, (9, 1, 4), *singles(5, 7), *singles(9, 12), (1, 5, 12), (9, 1, 20), *singles(21, 24), (0, 27, 30))
    found = contents_of(store)
    assert found.levels[0].holes == (Hole(8, 8), Hole(13, 20), Hole(25, 26))
    assert found.holes == (Hole(13, 19), Hole(25, 30))
    assert [(r.first.txid, r.last.txid) for r in found.restorable] == [(4, 12), (20, 24)]


def test_only_the_ends_are_read_however_many_files_there_are() -> None:
    store = MemoryStore()
    archive(store, (9, 1, 4), *singles(5, 30))
    for txid in range(31, 3000):
        key = ltx_key(store, 0, txid, txid)
        store.put(key, store.get(ltx_key(store, 0, 30, 30)), timestamp_ms=0)
    store.requests.clear()
    found = contents_of(store)
    assert found.newest_txid == 2999
    assert found.levels[0].last.timestamp_ms is None  # that header is another file's
    assert len([key for key in store.requests if key.endswith(".ltx")]) == 3
    assert len([key for key in store.requests if key.endswith("/")]) == 10


small_files = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(0, 5)).map(
        lambda t: ArchiveFile(t[0], t[1], t[1] + t[2], 1, 0, str(t))
    ),
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(small_files)
def test_ranges_and_holes_are_what_counting_finds(files: list[ArchiveFile]) -> None:
    ends: set[int] = set()
    for _ in files:
        ends |= {
            f.max_txid for f in files if f.is_snapshot or any(f.min_txid <= e + 1 and f.max_txid > e for e in ends)
        }
    ranges = restorable_ranges(files)
    assert [txid for found in ranges for txid in found] == sorted(ends)
    for one, then in itertools.pairwise(ranges):
        assert not any(f.min_txid <= one[-1] + 1 and f.max_txid == then[0] and not f.is_snapshot for f in files)
    there = {txid for f in files for txid in range(f.min_txid, f.max_txid + 1)}
    missing = {txid for hole in holes_between(files) for txid in range(hole.first_txid, hole.last_txid + 1)}
    assert missing == (set(range(min(there), max(there))) - there if there else set())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with open_store(str(tmp_path / "archive")) as store:
        archive(store, (9, 1, 4), *singles(5, 7), *singles(9, 12), (1, 5, 9))
        store.put("ltx/0/notes.txt", b"not ours", timestamp_ms=0)
    return tmp_path / "archive"


def test_the_command_says_it_in_words(place: Path) -> None:
    done = run(ls_command, place)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == place.as_uri()
    assert lines[2].split() == ["level", "files", "size", "from", "TXID", "to", "TXID", "oldest", "newest"]
    row = ["0", "7", f"{5:016x}", f"{12:016x}", "1970-01-01T00:00:05Z", "1970-01-01T00:00:12Z"]
    assert [*lines[3].split()[:2], *lines[3].split()[4:]] == row
    assert f"level 0 lacks TXID {8:016x} to {8:016x}" in lines
    first, last = f"{4:016x} (1970-01-01T00:00:04Z)", f"{12:016x} (1970-01-01T00:00:12Z)"
    assert f"restorable: TXID {first} to TXID {last}, 8 states" in lines
    assert "cannot be restored" not in done.stdout


def test_the_command_says_it_in_json(place: Path) -> None:
    facts = json.loads(run(ls_command, place, "--json").stdout)
    assert (facts["url"], facts["format"], facts["newest_txid"]) == (place.as_uri(), "ltx", f"{12:016x}")
    assert [level["level"] for level in facts["levels"]] == [0, 1, 9]
    assert facts["levels"][0]["holes"] == [{"first_txid": f"{8:016x}", "last_txid": f"{8:016x}"}]
    assert facts["snapshots"][0]["txid"] == f"{4:016x}"
    assert facts["restorable"][0]["last_time"] == "1970-01-01T00:00:12Z"
    assert facts["holes"] == []
    assert "files" not in facts
    with_files = json.loads(run(ls_command, place, "--json", "--files", "--level", "1").stdout)
    assert [(file["min_txid"], file["max_txid"]) for file in with_files["files"]] == [(f"{5:016x}", f"{9:016x}")]
    assert "restorable" not in with_files


def test_every_file_is_listed_line_by_line(place: Path) -> None:
    done = run(ls_command, place, "--files", "--level", "0")
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == [
        f"{txid:016x}" for txid in (5, 6, 7, 9, 10, 11, 12)
    ]


def test_an_empty_archive_and_one_of_litestream_0_3_are_told_apart(tmp_path: Path) -> None:
    assert "no LTX files" in run(ls_command, tmp_path).stdout
    folder = tmp_path / "generations" / ("0" * 15 + "a")
    for name in ("snapshots/00000001.snapshot.lz4", "wal/00000001_00000000.wal.lz4", "wal/00000001_00001000.wal.lz4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 10)
    said = run(ls_command, tmp_path).stdout
    assert "an archive of Litestream 0.3" in said
    assert said.splitlines()[4].split()[:5] == ["0" * 15 + "a", "1", "2", "30", "bytes"]
    assert json.loads(run(ls_command, tmp_path, "--json").stdout)["format"] == "litestream-0.3"
    assert "wal/00000001_00001000" in run(ls_command, tmp_path, "--files").stdout
