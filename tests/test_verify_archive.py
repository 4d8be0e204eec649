"""`walcast verify URL`: everything that can be wrong with an archive is one line, and nothing else is."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import History, MemoryStore
from support.run_command import run

from walcast.archive import ArchiveEmpty, ltx_key
from walcast.checksum import PageChecksums
from walcast.errors import ConfigError
from walcast.ltx import Decoder, Encoder, Header, Page, Trailer
from walcast.restore import RestoreReport, restore
from walcast.restore.verify import sample_archive, verify_archive
from walcast.store import Store, open_store
from walcast_node.commands.verify import verify_command

PAGE = 1024
FILES = [(9, 1, 3), (1, 4, 8), *[(0, txid, txid) for txid in range(4, 13)], (9, 1, 10)]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """A real database after each of twelve commits: SQLite must find it in order."""
    path = tmp_path_factory.mktemp("states") / "app.db"
    found = {0: b""}
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"pragma page_size = {PAGE}")
        db.execute("create table t (a integer primary key, b blob)")
        for txid in range(1, 13):
            db.execute("begin")
            db.executemany("insert into t (b) values (?)", [(bytes([txid]) * 700,)] * 5)
            db.execute("update t set b = ? where a = ?", (bytes(300), txid))
            db.execute("commit")
            found[txid] = path.read_bytes()
    return found


def fill(store: Store, states: dict[int, bytes], files: list[tuple[int, int, int]] = FILES) -> History:
    history = History(store, PAGE)
    history.states = dict(states)
    for part in files:
        history.put(*part)
    return history


@pytest.fixture
def history(states: dict[int, bytes]) -> History:
    return fill(MemoryStore(), states)


def key(history: History, level: int, low: int, high: int) -> str:
    return ltx_key(history.store, level, low, high)


def test_a_good_archive_has_no_problems(history: History, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = verify_archive(history.store, scratch=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert (found.problems, found.notes, found.unchecked) == ([], [], [])
    assert (found.files, found.files_read) == (len(FILES), len(FILES))
    assert found.position is not None
    assert (found.position.txid, found.position.checksum) == (12, history.checksum(12))
    assert found.pages * found.page_size == len(history.states[12])
    assert seen[-1][0] == seen[-1][1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad", [(9, 1, 3), (1, 4, 8), (0, 5, 5), (0, 12, 12), (9, 1, 10)], ids=lambda bad: f"level {bad[0]} at {bad[2]}"
)
@pytest.mark.parametrize("how", ["flip", "cut", "longer", "header", "another's"])
def test_damage_anywhere_is_found_and_named(history: History, bad: tuple[int, int, int], how: str) -> None:
    name = key(history, *bad)
    body = bytearray(history.store.get(name))
    if how == "flip":
        body[-10] ^= 1
    elif how == "cut":
        del body[-1]
    elif how == "longer":
        body += b"x"
    elif how == "header":
        body[0] ^= 1
    else:
        body[:] = history.store.get(key(history, 0, 7, 7))
    history.store.put(name, bytes(body), timestamp_ms=0)
    found = verify_archive(history.store)
    assert found.problems[0].startswith(f"{name}: ")
    assert found.files_read == len(FILES) - 1
    needed = bad == (0, 12, 12)
    assert (found.position is None) == needed
    assert len(found.problems) == 1 + needed
    assert bool(found.notes) == (bad == (9, 1, 10))  # the newest state restores around it


def test_a_page_index_that_is_wrong_under_a_right_checksum_is_found(history: History) -> None:
    from ltx_forge import crc64

    name = key(history, 0, 5, 5)
    body = bytearray(history.store.get(name))
    decoder = Decoder()
    decoder.feed(body)
    hashed = bytearray(body[:100])
    end = 100
    while not isinstance(event := decoder.next_event(), Trailer):
        if isinstance(event, Page):
            hashed += body[end : end + 10] + event.data
            end += 10 + len(event.block)
    body[end + 7] ^= 1  # the first page's offset in the index
    covered = body[end:-8]
    body[-8:] = (crc64(bytes(hashed + covered)) | 1 << 63).to_bytes(8, "big")
    history.store.put(name, bytes(body), timestamp_ms=0)
    (problem,) = verify_archive(history.store).problems
    assert problem.startswith(f"{name}: ")
    assert "page index" in problem


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ([(0, 7, 7)], "level 0 lacks TXID {7} to {7}; other levels have it"),
        ([(0, 9, 9), (0, 10, 10)], "note: level 0 lacks TXID {9} to {10}; a snapshot goes on from there"),
        ([(0, 11, 11)], "level 0 lacks TXID {11} to {11}"),
        ([(1, 4, 8)], None),
        ([(9, 1, 3)], None),
        ([(9, 1, 10)], None),
    ],
)
def test_a_missing_file_is_a_problem_where_it_costs_something(
    history: History, missing: list[tuple[int, int, int]], says: str | None
) -> None:
    history.store.delete([key(history, *part) for part in missing])
    found = verify_archive(history.store)
    for txid in range(1, 13):
        says = says and says.replace(f"{{{txid}}}", f"{txid:016x}")
    lines = found.problems + [f"note: {text}" for text in found.notes]
    if says is None:
        assert lines == []
    else:
        assert lines[0] == says
    assert any("cannot be restored" in text for text in found.problems) == (missing == [(0, 11, 11)])


def test_files_that_disagree_about_the_database_are_named(history: History) -> None:
    other = History(history.store, PAGE)
    other.states = {txid: state.replace(b"\x05" * 700, b"\x99" * 700) for txid, state in history.states.items()}
    name = other.put(1, 4, 8)
    (problem,) = verify_archive(history.store).problems
    assert problem.startswith(f"TXID {8:016x}: files disagree about the database: ")
    assert f"{other.checksum(8):016x} in {name}" in problem
    assert f"{history.checksum(8):016x} in {key(history, 0, 8, 8)}" in problem


def test_a_snapshot_that_lies_about_its_pages_is_found(history: History) -> None:
    name = history.put(9, 1, 3, lie=4)
    (problem,) = verify_archive(history.store).problems
    assert problem.startswith(f"{name}: says database checksum")


def test_checksums_before_and_after_are_compared_where_files_have_both(states: dict[int, bytes]) -> None:
    history = History(MemoryStore(), PAGE)
    history.states = dict(states)
    for part in FILES:
        history.put(*part, checksums=True)
    assert verify_archive(history.store).problems == []
    history.states[6] = history.states[6][:-1] + b"x"
    history.put(0, 7, 7, checksums=True)
    assert verify_archive(history.store).problems[0].startswith(f"TXID {6:016x}: files disagree")


def test_times_that_go_back_and_foreign_names_are_noted(history: History) -> None:
    name = key(history, 0, 9, 9)
    events = []
    decoder = Decoder()
    decoder.feed(history.store.get(name))
    while (event := decoder.next_event()) is not None:
        events.append(event)
    header = events[0]
    assert isinstance(header, Header)
    body = bytearray()
    facts = {field: getattr(header, field) for field in header.__slots__}
    encoder = Encoder(Header(**facts | {"timestamp_ms": 10}), body.extend)
    for event in events:
        if isinstance(event, Page):
            encoder.add(event.pgno, event.data)
    encoder.finish()
    history.store.put(name, bytes(body), timestamp_ms=0)
    history.store.put(history.store.level_prefix(0) + "notes.txt", b"", timestamp_ms=0)
    found = verify_archive(history.store)
    assert found.problems == []
    assert found.notes == [
        "0000/notes.txt: not the name of an LTX file",
        f"{name}: its time 1970-01-01T00:00:00.010Z is before 1970-01-01T00:00:08Z of the file before it",
    ]


def test_what_sqlite_finds_wrong_is_a_problem(history: History) -> None:
    history.states = {
        txid: state[: 2 * PAGE] + bytes(PAGE) + state[3 * PAGE :] for txid, state in history.states.items()
    }
    history.states[0] = b""
    for part in FILES:
        history.put(*part)
    (problem,) = verify_archive(history.store).problems
    assert "the newest state cannot be restored: the restored database fails SQLite's integrity_check" in problem


def test_what_the_disk_changes_is_a_problem(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(store: Store, output: Path, **options: Any) -> RestoreReport:
        report = restore(store, output, **options)
        with output.open("r+b") as file:
            file.seek(3000)
            file.write(b"rot")
        return report

    monkeypatch.setattr("walcast.restore.verify.restore", flip)
    (problem,) = verify_archive(history.store).problems
    assert "the file in the scratch folder has checksum" in problem


def test_a_file_that_retention_removes_meanwhile_is_no_problem_and_one_that_is_listed_is() -> None:
    class Going(MemoryStore):
        listed_still = False

        def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
            if name == ltx_key(self, 1, 4, 8):
                body = self.objects.pop(name)
                try:
                    return super().get(name, start, length)
                finally:
                    if self.listed_still:
                        self.objects[name] = body
            return super().get(name, start, length)

    for listed_still in (False, True):
        store = Going()
        history = History(store)
        history.commit(12)
        for part in FILES:
            history.put(*part)
        store.listed_still = listed_still
        problems = [text for text in verify_archive(store).problems if "integrity_check" not in text]
        assert problems == ([f"{ltx_key(store, 1, 4, 8)}: is listed, but not there"] if listed_still else [])


def test_a_scratch_folder_without_space_is_said_before_anything_is_read(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 0, 10))
    with pytest.raises(ConfigError, match=r"has 10 bytes free, and the database needs .*--scratch"):
        verify_archive(history.store, scratch=tmp_path)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="No such file"):
        verify_archive(history.store, scratch=tmp_path / "none")


def test_a_sample_is_cheap_and_says_what_it_leaves_out(history: History) -> None:
    store = history.store
    assert isinstance(store, MemoryStore)
    store.requests.clear()
    found = sample_archive(store, count=3)
    assert found.problems == []
    assert (found.files, found.files_read) == (len(FILES), 3)
    assert found.unchecked == [
        f"the contents of {len(FILES) - 3} of {len(FILES)} files, among them the snapshots'",
        "whether the newest state restores",
    ]
    assert len([name for name in store.requests if name.endswith(".ltx")]) == 3 + 3 + 3  # files, plan, both ends


@pytest.mark.parametrize("how", ["tail", "index", "header", "middle"])
def test_a_sample_looks_at_both_ends_of_the_newest_snapshot(history: History, how: str) -> None:
    name = key(history, 9, 1, 10)
    body = bytearray(history.store.get(name))
    if how == "tail":
        del body[-1]
    elif how == "index":
        body[-40] ^= 1
    elif how == "middle":
        del body[200:250]
    else:
        body[1] ^= 1
    history.store.put(name, bytes(body), timestamp_ms=0)
    (problem,) = sample_archive(history.store, count=0).problems
    assert problem.startswith(f"{name}: ")


def test_a_sample_finds_holes_and_headers_of_other_files(history: History) -> None:
    history.store.put(key(history, 0, 12, 12), history.store.get(key(history, 0, 5, 5)), timestamp_ms=0)
    history.store.delete([key(history, 0, 7, 7)])
    found = sample_archive(history.store, count=0)
    assert [text.split(":")[0] for text in found.problems] == [
        f"level 0 lacks TXID {7:016x} to {7:016x}; other levels have it",
        key(history, 0, 12, 12),
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, len(FILES) - 1))
def test_any_damage_that_matters_is_found(seed: int, which: int) -> None:
    """A flipped bit that leaves the file what it was (another LZ4 block for the same page) may pass."""
    choose = random.Random(seed)
    history = History(MemoryStore(), seed=seed)
    history.commit(12)
    for part in FILES:
        history.put(*part)
    name = key(history, *FILES[which])
    whole = history.store.get(name)
    body = bytearray(whole)
    body[choose.randrange(len(body))] ^= 1 << choose.randrange(8)
    history.store.put(name, bytes(body), timestamp_ms=0)
    found = [text for text in verify_archive(history.store).problems if "integrity_check" not in text]
    if not found:
        from walcast.ltx import decode_file

        assert [page.data for page in decode_file(body)[1]] == [page.data for page in decode_file(whole)[1]]
    else:
        assert found[0].startswith(f"{name}: ")


def test_an_archive_with_nothing_in_it_and_an_old_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveEmpty, match="nothing to verify"):
        verify_archive(MemoryStore())
    store = MemoryStore()
    store.put("generations/000000000000000a/snapshots/00000000.snapshot.lz4", b"x", timestamp_ms=0)
    with pytest.raises(ConfigError, match=r"Litestream 0\.3.*--integrity-check full"):
        verify_archive(store)


def test_the_command_exits_with_1_and_names_each_problem(states: dict[int, bytes], tmp_path: Path) -> None:
    with open_store(str(tmp_path / "archive")) as store:
        history = fill(store, states)
        done = run(verify_command, tmp_path / "archive", "--scratch", tmp_path)
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[-1] == "no problems"
        position = f"{12:016x}/{PageChecksums.scan(PAGE, iter([(1, states[12])])).database:016x}"
        assert f"to {position}, 1970-01-01T00:00:12Z: integrity_check and checksum are right" in done.stdout
        facts = json.loads(run(verify_command, store.url, "--json").stdout)
        assert (facts["ok"], facts["position"], facts["files_read"]) == (True, position, len(FILES))
        sampled = run(verify_command, tmp_path / "archive", "--sample", "--sample-files", "2")
        assert sampled.stdout.splitlines()[0].startswith("not checked: the contents of 10 of 12 files")
        store.delete([key(history, 0, 7, 7)])
        done = run(verify_command, tmp_path / "archive")
    assert done.exit_code == 1
    problem = f"level 0 lacks TXID {7:016x} to {7:016x}; other levels have it"
    assert done.stdout.splitlines()[0] == f"problem: {problem}"
    assert done.stderr == f"error: {(tmp_path / 'archive').as_uri()} has 1 problem; the first: {problem}\n"


def test_an_argument_that_is_neither_an_archive_nor_a_replica_is_wrong_usage(tmp_path: Path) -> None:
    done = run(verify_command, tmp_path / "app.db")
    assert done.exit_code == 2
    assert "--primary" in done.stderr
    done = run(verify_command, tmp_path / "app.db", "--primary", "127.0.0.1:1")
    assert done.exit_code == 1
    assert "no such file" in done.stderr


def test_a_configuration_file_says_where_a_database_is_archived(states: dict[int, bytes], tmp_path: Path) -> None:
    with open_store(str(tmp_path / "archive")) as store:
        fill(store, states)
    config = tmp_path / "walcast.yml"
    config.write_text(f"dbs:\n  - path: {tmp_path}/app.db\n    archive: {tmp_path}/archive\n")
    assert run(verify_command, tmp_path / "app.db", "--config", config).exit_code == 0
