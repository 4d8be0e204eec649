"""Restores that are divided among processes: the same database, the same errors, and nothing left behind."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ltx_forge import crc64
from support.archives import History, MemoryStore

from walcast.archive import ArchiveFile, list_files, ltx_key
from walcast.checksum import crc64_go_iso
from walcast.errors import Corrupt, Unavailable, WalcastError
from walcast.ltx import Decoder, Header, Page, decode_file, decode_page_index
from walcast.ltx.possible import TAIL_BYTES, check_tail
from walcast.restore import DamagedFile, restore
from walcast.restore import division as restore_division
from walcast.restore import parts as restore_parts
from walcast.restore.crc_parts import crc64_of_parts
from walcast.restore.division import Division, divide
from walcast.restore.parts import cut, decode, finish
from walcast.restore.workers import Workers, can_fork
from walcast.store import ObjectMissing, Store, open_store

DEADLINE_S = 30


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every restore is divided, its snapshot into parts of a few pages; the keys of the snapshots that were."""
    keys: list[str] = []
    apply_parts = Division.apply_parts

    def spy(self: Division, *arguments: object) -> None:
        keys.append(self._divided.file.key if self._divided else "")
        apply_parts(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(restore_division, "DIVIDE_BYTES", 1)
    monkeypatch.setattr(restore_division, "can_fork", lambda: True)
    monkeypatch.setattr(restore_parts, "PART_BYTES", 500)
    monkeypatch.setattr(Division, "apply_parts", spy)
    return keys


@pytest.fixture
def history() -> History:
    made = History(MemoryStore(), page_size=1024)
    made.commit(40)
    made.put(9, 1, 30)
    for txid in range(31, 41):
        made.put(0, txid, txid)
    return made


def snapshot_of(history: History) -> ArchiveFile:
    return next(file for file in list_files(history.store) if file.level == 9)


@given(st.binary(max_size=300), st.binary(max_size=3000), st.binary(max_size=50))
def test_the_crc_of_a_whole_comes_from_those_of_its_parts(a: bytes, b: bytes, c: bytes) -> None:
    both = crc64_of_parts(crc64_go_iso(a), crc64_go_iso(b), len(b))
    assert both == crc64_go_iso(a + b)
    assert crc64_of_parts(both, crc64_go_iso(c), len(c)) == crc64_go_iso(a + b + c)


def test_the_crc_is_the_one_of_the_definition() -> None:
    a, b = b"123456789", bytes(range(200))
    assert crc64_of_parts(crc64(a), crc64(b), len(b)) == crc64(a + b)
    assert crc64_of_parts(crc64(a), crc64(bytes(1 << 12)), 1 << 12) == crc64(a + bytes(1 << 12))


@pytest.mark.parametrize("part_bytes", [1, 300, 1000, 5000, 1 << 20])
def test_parts_are_whole_pages_and_prove_the_file(
    history: History, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(restore_division, "DIVIDE_BYTES", 1)
    monkeypatch.setattr(restore_parts, "PART_BYTES", part_bytes)
    file = snapshot_of(history)
    body = history.store.get(file.key)
    made = divide(history.store, file)
    assert made is not None
    header, pages, trailer = decode_file(body)
    index = decode_page_index(body)
    assert [pgno for part in made.parts for pgno in part.pgnos.tolist()] == list(index)
    assert [part.start for part in made.parts] == [index[int(part.pgnos[0])][0] for part in made.parts]
    assert [part.start for part in made.parts][1:] == [part.end for part in made.parts][:-1]
    found: dict[int, bytes] = {}
    crcs = {}
    for number in random.Random(1).sample(range(len(made.parts)), len(made.parts)):
        part = made.parts[number]
        answer = decode(
            header,
            part,
            body[part.start : part.end],
            lambda batch: found.update(zip(batch.pgnos.tolist(), batch.pages, strict=True)),
        )
        crcs[number] = answer.crc
    assert found == {page.pgno: page.data for page in pages}
    assert finish(made, [crcs[number] for number in range(len(made.parts))]) == trailer


def test_a_restore_in_parts_is_the_database_byte_for_byte(history: History, tmp_path: Path, divided: list[str]) -> None:
    out = tmp_path / "app.db"
    seen: list[tuple[int, int]] = []
    for txid in (None, 30, 35):
        report = restore(history.store, out, txid=txid, force=True, progress=lambda *at: seen.append(at))
        assert out.read_bytes() == history.states[txid or 40]
        assert report.restored is not None
        assert report.restored.position.checksum == history.checksum(txid or 40)
        assert seen[-1][0] == seen[-1][1] == sum(file.size for file in report.plan)
    assert divided == [snapshot_of(history).key] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]


def test_many_small_files_are_divided_without_parts(
    tmp_path: Path, divided: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(MemoryStore())
    history.commit(300)
    history.put(0, 1, 1)
    for txid in range(2, 301):
        history.put(0, txid, txid)
    monkeypatch.setattr(restore_division, "DIVIDE_BYTES", 1 << 30)
    restore(history.store, tmp_path / "app.db")
    assert divided == [""]
    assert (tmp_path / "app.db").read_bytes() == history.states[300]


@pytest.mark.parametrize("how", ["page", "prefix", "index", "trailer", "shorter", "header", "gone"])
def test_damage_is_found_as_without_parts(history: History, tmp_path: Path, divided: list[str], how: str) -> None:
    file = snapshot_of(history)
    body = bytearray(history.store.get(file.key))
    index = decode_page_index(body)
    offset, _ = index[7]
    at = {"page": offset + 12, "prefix": offset + 3, "index": -60, "trailer": -1, "header": 90}.get(how)
    if at is not None:
        body[at] ^= 1
    elif how == "shorter":
        del body[-30:]
    history.store.put(file.key, bytes(body), timestamp_ms=0)
    if how == "gone":
        history.store.delete([file.key])
    with pytest.raises(WalcastError) as caught:
        restore(history.store, tmp_path / "app.db")
    if how != "gone":
        assert isinstance(caught.value, DamagedFile)
        assert caught.value.file.key == file.key
    assert not list(tmp_path.iterdir())
    history.put(9, 1, 29)
    history.put(0, 30, 30)
    report = restore(history.store, tmp_path / "app.db")
    assert (tmp_path / "app.db").read_bytes() == history.states[40]
    assert report.went_around == (() if how == "gone" else (file.key,))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 32))
def test_no_damage_makes_a_wrong_database_in_parts(seed: int) -> None:
    choose = random.Random(seed)
    history = History(MemoryStore(), seed=seed)
    history.commit(12)
    for part in [(9, 1, 8), (9, 1, 10), (1, 9, 10), (0, 9, 9), (0, 10, 10), (0, 11, 11), (0, 12, 12)]:
        history.put(*part)
    for key in choose.sample(sorted(history.store.objects), choose.randint(0, 3)):  # type: ignore[attr-defined]
        body = bytearray(history.store.get(key))
        body[choose.randrange(len(body))] ^= 1 << choose.randrange(8)
        history.store.put(key, bytes(body), timestamp_ms=0)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(restore_division, "DIVIDE_BYTES", 1)
        patch.setattr(restore_division, "can_fork", lambda: True)
        patch.setattr(restore_parts, "PART_BYTES", 300)
        out = Path(folder) / "new" / "app.db"
        try:
            restore(history.store, out)
        except WalcastError:
            assert not out.parent.exists()
        else:
            assert out.read_bytes() == history.states[12]


def test_a_page_index_that_is_wrong_is_read_past_as_without_parts(
    history: History, tmp_path: Path, divided: list[str]
) -> None:
    file = snapshot_of(history)
    body = bytearray(history.store.get(file.key))
    header, hashed, end = Header.decode(body), bytearray(body[:100]), 100
    assert header is not None
    decoder = Decoder()
    decoder.feed(body)
    for _ in range(header.commit_pages + 1):
        event = decoder.next_event()
        if isinstance(event, Page):
            hashed += body[end : end + 10] + event.data
            end += 10 + len(event.block)
    body[end + 7] ^= 1
    body[-8:] = (crc64_go_iso(bytes(hashed + body[end:-8])) | 1 << 63).to_bytes(8, "big")
    history.store.put(file.key, bytes(body), timestamp_ms=0)
    restore(history.store, tmp_path / "app.db")
    assert (tmp_path / "app.db").read_bytes() == history.states[40]
    assert divided == [""]


@pytest.mark.parametrize("change", ["size", "order", "more", "less", "long"])
def test_an_index_that_cannot_be_is_corrupt(history: History, change: str) -> None:
    file = snapshot_of(history)
    body = history.store.get(file.key)
    header = Header.decode(body)
    assert header is not None
    tail = bytearray(body[-check_tail(header, file.size, body[-TAIL_BYTES:]) :])
    assert cut(header, file.size, bytes(tail))
    if change == "size":
        with pytest.raises(Corrupt):
            check_tail(header, file.size, (1 << 40).to_bytes(8, "big") + bytes(16))
        return
    if change == "order":
        tail[6] = 2
    elif change == "more":
        tail[-25:-24] = b"\x01\x00"
    elif change == "less":
        del tail[-27:-24]
    else:
        tail[6:10] = b"\xff" * 9 + b"\x01"
    with pytest.raises(Corrupt):
        cut(header, file.size, bytes(tail))


class Breaking(MemoryStore):
    """Whoever reads this key in a worker meets with something."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = os.getpid()
        self.key = ""
        self.how = ""

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if key == self.key and os.getpid() != self.parent and (start or self.how != "lost late"):
            if self.how.startswith("lost"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "missing":
                raise ObjectMissing(key, self.url)
            if self.how == "unavailable":
                raise Unavailable("the store is in trouble")
            raise ZeroDivisionError("a bug")
        return super().get(key, start, length)


def breaking(how: str, level: int = 9) -> tuple[Breaking, History]:
    store = Breaking()
    history = History(store, page_size=1024)
    history.commit(40)
    history.put(9, 1, 30)
    for txid in range(31, 41):
        history.put(0, txid, txid)
    store.key, store.how = ltx_key(store, 9, 1, 30) if level else ltx_key(store, 0, 35, 35), how
    return store, history


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize("level", [9, 0])
def test_a_process_that_is_killed_costs_time_and_nothing_else(
    tmp_path: Path, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    store, history = breaking("lost", level)
    with caplog.at_level("INFO", "walcast.restore"):
        report = restore(store, tmp_path / "app.db")  # type: ignore[arg-type]
    assert (tmp_path / "app.db").read_bytes() == history.states[40]
    assert [file.max_txid for file in report.plan] == list(range(30, 41))
    assert "going on in one process" in caplog.text  # from several, wherever the one of them was when it was killed


@pytest.mark.parametrize(
    ("how", "kind"), [("unavailable", Unavailable), ("bug", RuntimeError), ("missing", WalcastError)]
)
def test_an_error_in_a_process_is_an_error_here(
    tmp_path: Path, divided: list[str], how: str, kind: type[Exception]
) -> None:
    for level in (9, 0):
        store, history = breaking(how, level)
        with pytest.raises(kind) as caught:
            restore(store, tmp_path / "app.db")  # type: ignore[arg-type]
        if how == "missing":
            assert store.key in str(caught.value)
        assert not list(tmp_path.iterdir())
    assert divided
    assert history.states


def test_a_full_disk_in_a_process_is_one_line(history: History, tmp_path: Path, divided: list[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = len(history.states[30])
    resource.setrlimit(resource.RLIMIT_FSIZE, (wanted - 3000, hard))
    try:
        with pytest.raises(Unavailable, match=r"File too large.*nothing was left behind"):
            restore(history.store, tmp_path / "app.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_process_with_threads_is_not_forked(tmp_path: Path) -> None:
    code = """
import threading
from walcast.restore.workers import can_fork
print(can_fork())
event = threading.Event()
threading.Thread(target=event.wait, daemon=True).start()
print(can_fork())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert done.stdout.split() == [str(len(os.sched_getaffinity(0)) > 1), "False"]
    assert isinstance(can_fork(), bool)


RUNNING = r"""
import os, signal, sys
from pathlib import Path
from walcast.restore import division as restore_division
from walcast.restore import parts as restore_parts
from walcast.restore import restore
from walcast.store.directory import DirectoryStore

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
restore_division.DIVIDE_BYTES = restore_parts.PART_BYTES = 1
restore_division.can_fork = lambda: True

class Endless(DirectoryStore):
    parent = os.getpid()
    def get(self, key, start=0, length=None):
        if os.getpid() != self.parent:
            os.write(1, f"{os.getpid()}\n".encode())  # in one piece: several processes write
            os.read(int(sys.argv[3]), 1)  # until the other end is closed
        return super().get(key, start, length)

try:
    restore(Endless(Path(sys.argv[1])), Path(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_the_restore(tmp_path: Path, how: signal.Signals) -> None:
    history = History(open_store(str(tmp_path / "archive")))
    history.commit(6)
    history.put(9, 1, 6)
    waiting, hold = os.pipe()
    command = [sys.executable, "-c", RUNNING, str(tmp_path / "archive"), str(tmp_path / "new" / "app.db"), str(waiting)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, pass_fds=[waiting]
    ) as process:
        try:
            assert process.stdout is not None
            workers = {int(process.stdout.readline()) for _ in range(2)}
            os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
            os.close(hold)
            _, said = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    os.close(waiting)
    give_up_s = time.monotonic() + DEADLINE_S
    while not all(is_gone(pid) for pid in workers):
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    assert said == ""
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert not (tmp_path / "new").exists()


def is_gone(pid: int) -> bool:
    """A zombie is, too: whose child it has become may be slow to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_workers_answer_every_ticket_in_any_order(history: History, tmp_path: Path) -> None:
    from walcast.restore.workers import Range

    (tmp_path / "target").write_bytes(b"")
    store: Store = history.store
    file = snapshot_of(history)
    with Workers(store, tmp_path / "target", None, 5) as workers:
        for ticket in range(50):
            workers.submit(ticket, Range(file.key, ticket, ticket + 1))
        workers.submit(50, Range("none", 0, 1))
        answers = dict(workers.next() for _ in range(51))
    body = store.get(file.key)
    missing = answers.pop(50)
    assert answers == {ticket: body[ticket : 2 * ticket + 1] for ticket in range(50)}
    assert isinstance(missing, ObjectMissing)
    assert missing.key == "none"


def test_no_process_collects_what_the_parent_left_behind(history: History, divided: list[str], tmp_path: Path) -> None:
    """Its end may wait for a thread that only the parent has, as that of a gRPC channel does."""
    parent, collected = os.getpid(), tmp_path / "collected"

    class Left:
        def __init__(self) -> None:
            self.me = self  # a cycle: only a collection finds it

        def __del__(self) -> None:
            if os.getpid() != parent:
                collected.touch()

    before = gc.get_threshold()
    collecting = [True]
    os.register_at_fork(after_in_child=lambda: gc.set_threshold(1) if collecting[0] else None)
    gc.collect()
    gc.set_threshold(1 << 30)  # not here
    try:
        Left()
        restore(history.store, tmp_path / "out.db")
    finally:
        collecting[0] = False
        gc.set_threshold(*before)
    assert divided
    assert not collected.exists()
