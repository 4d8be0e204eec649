"""An archive over a life of minutes in seconds: levels, snapshots, retention, outages, faults of the store."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.archiving import CALM, archived, archiving, compact_now, levels, restored, restored_by_litestream
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.nodes import PATIENCE_S, poll
from support.s3 import counted_s3
from support.writers import Child, checkpointed, sql, writer

from walcast.archive import SNAPSHOT_LEVEL, ArchiveFile, list_files, plan_restore
from walcast.errors import ConfigError, Unavailable
from walcast.store import ObjectInfo, Store, open_store
from walcast.store.directory import DirectoryStore
from walcast_primary.archiving import backoff, upkeep, upkeep_attempt
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

FAST = ArchivePolicy(level_intervals_s=(0.3, 0.6, 1.2), snapshot_interval_s=1.5, retention_s=2.0, raw_retention_s=0.4)
COMMIT = "UPDATE accounts SET balance = balance + 1"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


def write(db: Path, commits: int) -> None:
    with sql(db) as stock:
        for _ in range(commits):
            stock(COMMIT)


def load(db: Path) -> Any:
    return writer(db, pause_s=0.002, seed=3)


def test_levels_fill_raw_files_go_old_snapshots_go_and_everything_is_restorable(app: Served, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "archive")
    with archiving(app, store, FAST) as archiver:
        with load(app.path) as busy:
            first = poll(lambda: levels(store).get(SNAPSHOT_LEVEL))[0]

            def old_and_new() -> bool:
                there = levels(store)
                return {1, 2, 3} <= there.keys() and first not in there[SNAPSHOT_LEVEL]

            assert poll(old_and_new), levels(store)
            busy.stop()
        assert archived(app, archiver)
        assert poll(lambda: 0 not in levels(store)), "raw files go once they are compacted"
        assert archiver.upkeep_error is None
    there = levels(store)
    base = min(file.max_txid for file in there[SNAPSHOT_LEVEL])
    assert all(file.max_txid > base for level in (1, 2, 3) for file in there[level])
    for level in (1, 2, 3):
        files = sorted(there[level], key=lambda file: file.min_txid)
        assert all(a.max_txid + 1 == b.min_txid for a, b in pairwise(files))
    app.stop()
    expected = checkpointed(app.path)
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


def test_after_one_listing_nothing_is_listed_and_nothing_is_put_when_idle(app: Served, tmp_path: Path) -> None:
    with counted_s3(tmp_path / "s3") as server, open_store(server.spec()) as store:
        with archiving(app, store, FAST) as archiver:
            write(app.path, 1)
            assert archived(app, archiver)
            listed = server.traffic.requests["LIST"]
            with load(app.path):
                assert poll(lambda: server.traffic.requests["DELETE"] or server.traffic.requests["POST"])
            assert archived(app, archiver)
            assert poll(lambda: archiver._upkeep and archiver._upkeep._settled())
            end = app.position.txid
            assert poll(lambda: archiver._catalogue and archiver._catalogue.end_txid(SNAPSHOT_LEVEL) == end)
            assert poll(lambda: archiver._upkeep and not archiver._upkeep._due(time.time_ns() // 1_000_000))
            assert server.traffic.requests["LIST"] == listed <= 11, "ten levels, and uploads that were cut off"
            before = server.traffic.requests["PUT"]
            assert not poll(lambda: server.traffic.requests["PUT"] > before, 0.5)
        app.stop()
        assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


class Unreliable(DirectoryStore):
    """Fails in a call that `fault` picks; the answer of a call that was carried out may get lost, too."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fault: Callable[[str, str], bool] = lambda call, key: False
        self.calls: list[tuple[str, str]] = []

    def _meet(self, call: str, key: str) -> None:
        self.calls.append((call, key))
        if self.fault(call, key):
            raise Unavailable(f"{call} {key} failed")

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._meet("get", key)
        return super().get(key, start, length)

    def put(self, key: str, *args: Any, **options: Any) -> None:
        self._meet("put", key)
        super().put(key, *args, **options)
        self._meet("after put", key)

    def delete(self, keys: Any) -> None:
        for key in list(keys):  # one by one: interrupted between any two
            self._meet("delete", key)
            super().delete([key])
            self._meet("after delete", key)


def test_a_store_that_fails_now_and_then_in_any_call_loses_nothing(app: Served, tmp_path: Path) -> None:
    store = Unreliable(tmp_path / "archive")
    rng = random.Random(5)
    with archiving(app, store, FAST) as archiver:
        write(app.path, 1)
        assert archived(app, archiver)
        store.fault = lambda call, key: rng.random() < 0.08
        with load(app.path) as busy:
            assert poll(lambda: any(call == "delete" for call, _ in store.calls))
            for _ in range(5):
                files = list_files(store)
                assert plan_restore(files), "restorable at every moment"
            busy.stop()
        store.fault = lambda call, key: False
        assert archived(app, archiver)
    app.stop()
    expected = checkpointed(app.path)
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


def test_an_archive_that_must_not_be_deleted_from_is_kept_in_shape_all_the_same(
    app: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Denying(DirectoryStore):
        refused = 0

        def delete(self, keys: Any) -> None:
            self.refused += 1
            raise ConfigError("these credentials may not delete")

    store = Denying(tmp_path / "archive")
    with archiving(app, store, FAST) as archiver, load(app.path) as busy:
        assert poll(lambda: store.refused)
        before = levels(store)

        def goes_on() -> bool:
            there = levels(store)
            return all(len(there[level]) > len(before[level]) for level in (1, SNAPSHOT_LEVEL))

        assert poll(goes_on), "compaction and snapshots wait for retention"
        assert "may not delete" in (archiver.upkeep_error or "")
        busy.stop()
    said = [record for record in caplog.records if "may not delete" in str(vars(record).get("error"))]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("hangs", "goes_on"),
    [
        (("put", "/1/"), ("snapshot", "retention")),  # compaction
        (("delete", ""), ("snapshot", "compaction")),  # retention
    ],
)
def test_a_duty_whose_store_hangs_is_left_behind_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: tuple[str, str], goes_on: tuple[str, str]
) -> None:
    monkeypatch.setattr(upkeep_attempt, "STUCK_S", 0.3)
    monkeypatch.setattr(upkeep, "STUCK_S", 0.3)
    monkeypatch.setattr(backoff, "RETRY_S", (0.1,))
    answers, hanging = threading.Event(), []

    class Hanging(Unreliable):
        def _meet(self, call: str, key: str) -> None:
            super()._meet(call, key)
            if call == hangs[0] and hangs[1] in key and not answers.is_set():
                hanging.append(threading.current_thread())
                answers.wait(PATIENCE_S)

    store = Hanging(tmp_path / "archive")
    path = tmp_path / "app.db"
    create(path)
    with served(path) as app, archiving(app, store, FAST) as archiver, load(app.path) as busy:
        try:
            assert poll(lambda: hangs_known(archiver))
            before = levels(store)
            calls = len(store.calls)

            def others_go_on() -> bool:
                there, since = levels(store), store.calls[calls:]
                done = {
                    "snapshot": bool(set(there[SNAPSHOT_LEVEL]) - set(before.get(SNAPSHOT_LEVEL, []))),
                    "compaction": bool(set(there.get(1, [])) - set(before.get(1, []))),
                    "retention": any(call == "after delete" for call, _ in since),
                }
                return all(done[work] for work in goes_on)

            assert poll(others_go_on), (archiver.upkeep_error, before, levels(store))
            assert archiver.error is None
            assert len(hanging) == 1, "it is not tried again before that ends"
        finally:
            answers.set()
        assert poll(lambda: not hanging[0].is_alive())
        busy.stop()
        assert archived(app, archiver)
    assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


def hangs_known(archiver: Archiver) -> bool:
    return "has not answered" in (archiver.upkeep_error or "")


def test_nothing_is_deleted_that_a_damaged_file_was_to_replace(app: Served, tmp_path: Path) -> None:
    class Lying(DirectoryStore):
        """Says yes to a compacted file and keeps half of it."""

        def put(self, key: str, body: Any, **options: Any) -> None:
            if "/1/" in key:
                data = body if isinstance(body, bytes) else body.read()
                body = data[: len(data) // 2]
            super().put(key, body, **options)

    store = Lying(tmp_path / "archive")
    with archiving(app, store, FAST) as archiver:
        for _ in range(3):
            write(app.path, 2)
            assert archived(app, archiver)
        assert poll(lambda: archiver.upkeep_error)
        assert levels(store)[0], "the raw files stay"
    app.stop()
    assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_raw_file_is_bridged_by_a_snapshot(app: Served, tmp_path: Path, damage: str) -> None:
    store = DirectoryStore(tmp_path / "archive")
    with archiving(app, store) as archiver:
        for _ in range(2):
            write(app.path, 1)
            assert archived(app, archiver)
        victim = max(levels(store)[0], key=lambda file: file.max_txid)
        path = store.root / victim.key
        if damage == "flipped":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        else:
            path.unlink()
        compact_now(archiver)
        assert poll(lambda: len(levels(store)[SNAPSHOT_LEVEL]) == 2), archiver.upkeep_error
        write(app.path, 3)
        assert archived(app, archiver)
        compact_now(archiver)
        assert poll(lambda: max(f.max_txid for f in levels(store).get(1, [victim])) > victim.max_txid), "it goes on"
    app.stop()
    expected = checkpointed(app.path)
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


def test_a_primary_that_starts_again_takes_up_what_was_left(app: Served, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "archive")
    for _ in range(3):
        with archiving(app, store, FAST) as archiver:
            write(app.path, 2)
            assert archived(app, archiver)
            assert poll(lambda: 0 not in levels(store))
        app.restart()
    assert len(levels(store)[1]) == 3 or len(levels(store)[SNAPSHOT_LEVEL]) > 1
    app.stop()
    assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


def test_without_room_for_a_snapshot_the_apps_disk_is_left_alone(
    app: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from walcast_primary.archiving import snapshot as snapshots

    monkeypatch.setattr(snapshots, "free_bytes", lambda path, for_anybody: 1 << 20)
    with archiving(app, DirectoryStore(tmp_path / "archive"), FAST) as archiver:
        assert poll(lambda: archiver.error)
        assert "no room for a snapshot" in str(archiver.error)
        assert archiver.behind_s > 0


# The store away for longer than the log reaches


@contextmanager
def tiny(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path, log_bytes=1 << 18) as made:
        yield made


def outlive_the_log(app: Served, busy: Child) -> None:
    """Writing, until what is now the newest entry is gone from the log."""
    now = app.position
    assert poll(lambda: app.database.log.first.txid > now.txid + 10)


def files_since(store: Store, txid: int) -> list[ArchiveFile]:
    return [file for file in list_files(store) if file.max_txid > txid]


@pytest.mark.parametrize("restarted", [False, True], ids=["the primary lives", "the primary starts again meanwhile"])
def test_after_an_outage_longer_than_the_log_one_difference_is_shipped(tmp_path: Path, restarted: bool) -> None:
    store = Unreliable(tmp_path / "archive")
    with tiny(tmp_path) as app:
        with archiving(app, store) as archiver:
            with sql(app.path) as stock:
                stock("CREATE TABLE ballast(data); ")
                stock(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
                    "INSERT INTO ballast SELECT randomblob(900) FROM n"
                )
            assert archived(app, archiver)
            before = archiver.txid
            store.fault = lambda call, key: True
            with load(app.path) as busy:
                outlive_the_log(app, busy)
                assert poll(lambda: archiver.error)
                assert archiver.behind_s > 0
                bound = app.database.log.max_bytes + app.database.log.segment_bytes
                assert app.database.log.size_bytes <= bound
                if restarted:
                    archiver.stop(drain_s=0.1)
                    # Before the capture starts, as a primary does it: what is trimmed from then on is noted.
                    archiver = app.restart(lambda database: Archiver(database, store, CALM, interval_s=0.05))
                    archiver.start()
                    outlive_the_log(app, busy)
                store.fault = lambda call, key: False
                assert archived(app, archiver)
                busy.stop()
            assert archived(app, archiver)
            assert archiver.error is None
            archiver.stop()
        new = files_since(store, before)
        assert {file.level for file in new} == {0}, "a difference, not a snapshot"
        bridge = min(new, key=lambda file: file.min_txid)
        assert bridge.min_txid == before + 1
        assert bridge.size < app.path.stat().st_size / 4
        plan = plan_restore(list_files(store))
        assert plan[0].max_txid <= before, "what is restorable before the outage stays"
        app.stop()
        expected = checkpointed(app.path)
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


def test_notes_that_cannot_be_kept_cost_a_snapshot_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from walcast_primary.archiving.unarchived_pages import Unarchived

    def full(self: Unarchived, *, durable: bool) -> None:
        raise OSError(28, "No space left on device")

    store = Unreliable(tmp_path / "archive")
    with tiny(tmp_path) as app:
        with archiving(app, store) as archiver:
            write(app.path, 1)
            assert archived(app, archiver)
            store.fault = lambda call, key: True
            monkeypatch.setattr(Unarchived, "_save", full)
            with load(app.path) as busy:
                outlive_the_log(app, busy)
                busy.stop()
            monkeypatch.undo()
            store.fault = lambda call, key: False
            assert archived(app, archiver)
        assert len(levels(store)[SNAPSHOT_LEVEL]) == 2
        assert app.database.loop.failure is None
        app.stop()
        assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


def test_the_archive_of_another_history_is_not_joined_with_ours(app: Served, tmp_path: Path) -> None:
    other = tmp_path / "other" / "app.db"
    other.parent.mkdir()
    create(other)
    store = DirectoryStore(tmp_path / "archive")
    with served(other) as theirs, archiving(theirs, store) as archiver:
        with sql(other) as stock:
            stock("CREATE TABLE only_theirs(x)")
        write(other, 3)
        assert archived(theirs, archiver)
        ended = archiver.txid
    write(app.path, 10)
    with archiving(app, store) as archiver:
        assert archived(app, archiver)
        write(app.path, 3)
        assert archived(app, archiver)
    there = levels(store)
    covered = {txid for file in there[0] for txid in range(file.min_txid, file.max_txid + 1)}
    assert set(range(2, max(covered))) - covered, "a TXID between the two that no chain can cross"
    assert max(file.max_txid for file in there[SNAPSHOT_LEVEL]) > ended
    app.stop()
    assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


def test_a_primary_never_writes_over_what_another_one_archived(app: Served, tmp_path: Path) -> None:
    class Blind(DirectoryStore):
        """Lists nothing: as it was a moment before the other one came."""

        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            yield from ()

    other = tmp_path / "other.db"
    create(other, seed=1)
    store = DirectoryStore(tmp_path / "archive")
    with served(other) as theirs, archiving(theirs, store) as archiver:
        assert archived(theirs, archiver)
        theirs.stop()
        there = {file.key: store.get(file.key) for file in list_files(store)}
    with archiving(app, Blind(tmp_path / "archive")) as archiver:
        assert poll(lambda: archiver.error)
        assert "another primary" in str(archiver.error)
    assert {file.key: store.get(file.key) for file in list_files(store)} == there


def test_an_answer_that_was_lost_is_no_conflict(app: Served, tmp_path: Path) -> None:
    store = Unreliable(tmp_path / "archive")
    store.fault = lambda call, key: call == "after put" and store.calls.count((call, key)) == 1
    with archiving(app, store) as archiver:
        assert archived(app, archiver)
        write(app.path, 1)
        assert archived(app, archiver)
    assert any(call == "after put" for call, _ in store.calls)
    app.stop()
    assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)
