"""Compaction and retention as decisions: whatever is deleted, what the policy promises stays restorable."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walcast.archive import SNAPSHOT_LEVEL, ArchiveFile, plan_restore
from walcast_primary.archiving.compaction_schedule import (
    DAY_S,
    MAX_INPUTS,
    ArchivePolicy,
    compaction_inputs,
    expired,
    interval_passed,
    snapshot_due,
)

POLICY = ArchivePolicy(
    level_intervals_s=(3.0, 9.0, 27.0), snapshot_interval_s=40.0, retention_s=100.0, raw_retention_s=10.0
)


def file(level: int, min_txid: int, max_txid: int, timestamp_ms: int = 0) -> ArchiveFile:
    return ArchiveFile(level, min_txid, max_txid, 1, timestamp_ms, f"{level}/{min_txid}-{max_txid}")


def ranges(files: list[ArchiveFile]) -> list[tuple[int, int]]:
    return [(f.min_txid, f.max_txid) for f in files]


@pytest.mark.parametrize(
    ("below", "end_txid", "run"),
    [
        ([], 0, []),
        ([(2, 5), (6, 6), (7, 9)], 1, [(2, 5), (6, 6), (7, 9)]),
        ([(2, 5), (6, 6), (7, 9)], 6, [(7, 9)]),
        ([(2, 5), (6, 6)], 6, []),
        ([(2, 5), (7, 9), (10, 10)], 1, [(2, 5)]),  # up to a hole
        ([(2, 5), (7, 9), (10, 10)], 5, [(7, 9), (10, 10)]),  # and behind it
        ([(2, 5), (2, 8), (9, 9)], 1, [(2, 8), (9, 9)]),  # an upload that was tried again later
        ([(2, 5), (4, 8)], 1, [(2, 5), (4, 8)]),
        ([(1, 4), (5, 6)], 0, [(1, 4), (5, 6)]),  # Litestream's own first file
    ],
)
def test_a_level_takes_what_continues_it(
    below: list[tuple[int, int]], end_txid: int, run: list[tuple[int, int]]
) -> None:
    files = [file(0, *txids) for txids in below]
    random.Random(0).shuffle(files)
    assert ranges(compaction_inputs(files, end_txid)) == run


def test_a_compaction_has_a_bounded_number_of_inputs() -> None:
    files = [file(0, txid, txid) for txid in range(2, 500)]
    run = compaction_inputs(files, 1)
    assert ranges(run) == [(txid, txid) for txid in range(2, 2 + MAX_INPUTS)]


@pytest.mark.parametrize(
    ("now_ms", "last_ms", "passed"), [(59_999, 31_000, False), (60_000, 59_999, True), (9, 9, False)]
)
def test_an_interval_begins_at_its_multiples(now_ms: int, last_ms: int, passed: bool) -> None:
    assert interval_passed(now_ms, last_ms, 30.0) is passed


def test_a_snapshot_is_due_when_the_newest_is_old_and_something_was_written_since() -> None:
    policy = ArchivePolicy()
    old, now_ms = file(SNAPSHOT_LEVEL, 1, 5, 0), int(DAY_S * 1000)
    assert not snapshot_due([], policy, now_ms)
    assert not snapshot_due([old, file(0, 2, 5)], policy, now_ms)
    assert snapshot_due([old, file(0, 6, 6)], policy, now_ms)
    assert not snapshot_due([old, file(0, 6, 6)], policy, now_ms - 1)
    assert snapshot_due([file(0, 1, 1)], policy, 0)  # Litestream's archive before its first snapshot


def test_nothing_goes_that_only_itself_holds() -> None:
    files = [file(SNAPSHOT_LEVEL, 1, 5, 0), file(0, 6, 6, 0), file(1, 7, 9, 0), file(0, 10, 10, 0)]
    assert expired(files, POLICY, 10**9).files == ()


def test_without_deletion_nothing_goes() -> None:
    files = [file(SNAPSHOT_LEVEL, 1, 5, 0), file(SNAPSHOT_LEVEL, 1, 9, 0), file(0, 2, 5, 0)]
    assert expired(files, POLICY, 10**9).files
    assert expired(files, ArchivePolicy(delete=False), 10**9).files == ()


def test_what_takes_over_is_named_so_that_it_can_be_proven_first() -> None:
    snapshots = [file(SNAPSHOT_LEVEL, 1, 5, 0), file(SNAPSHOT_LEVEL, 1, 9, 1)]
    raw, over = file(0, 10, 10, 2), file(1, 10, 12, 3)
    going = expired([*snapshots, raw, over], POLICY, 10**9)
    assert set(going.files) == {snapshots[0], raw}
    assert set(going.relied_on) == {snapshots[1], over}


class History:
    """An archive over time, by the decisions under test: what a primary does, with crashes anywhere."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now_ms = 1_000_000
        self.txid = 1
        self.files = {file(SNAPSHOT_LEVEL, 1, 1, self.now_ms)}
        self.compacted_ms = {1: 0, 2: 0, 3: 0}
        self.ends: dict[int, int] = {}  # TXID at which a raw upload ended → its time

    def level(self, level: int) -> list[ArchiveFile]:
        return [f for f in self.files if f.level == level]

    def end(self, level: int) -> int:
        return max((f.max_txid for f in self.level(level)), default=0)

    def step(self) -> None:
        self.now_ms += self.rng.choice([100, 1000, 1000, 1000, 5000, 30_000])
        if self.rng.random() < 0.7:
            first, self.txid = self.txid + 1, self.txid + self.rng.randint(1, 5)
            self.files.add(file(0, first, self.txid, self.now_ms))
            self.ends[self.txid] = self.now_ms
        if self.rng.random() < 0.03:  # a hole in the levels, bridged by a snapshot
            self.txid += 2
            self.files.add(file(SNAPSHOT_LEVEL, 1, self.txid, self.now_ms))
        if self.rng.random() < 0.3:
            return  # the primary was away
        for level in (1, 2, 3):
            if interval_passed(self.now_ms, self.compacted_ms[level], POLICY.level_intervals_s[level - 1]):
                while run := compaction_inputs(self.level(level - 1), self.end(level)):
                    self.files.add(file(level, run[0].min_txid, run[-1].max_txid, run[-1].timestamp_ms))
                    if self.rng.random() < 0.1:
                        return  # a crash
                self.compacted_ms[level] = self.now_ms
        if snapshot_due(self.files, POLICY, self.now_ms):
            self.files.add(file(SNAPSHOT_LEVEL, 1, self.txid, self.now_ms))
        going = list(expired(list(self.files), POLICY, self.now_ms).files)
        self.rng.shuffle(going)
        self.files -= set(going[: self.rng.randint(0, len(going))])

    def check(self) -> None:
        files = list(self.files)
        assert plan_restore(files)[-1].max_txid == self.txid
        kept_ms, raw_ms = self.now_ms - POLICY.retention_s * 1000, self.now_ms - POLICY.raw_retention_s * 1000
        grain = {f.max_txid for f in self.level(1)}
        for txid, then_ms in self.ends.items():
            if then_ms > raw_ms or (then_ms > kept_ms and txid in grain):
                assert plan_restore(files, txid=txid)[-1].max_txid == txid

    def check_bounds(self) -> None:
        """Nothing is kept for ever: after a quiet retention the archive is a snapshot and what came after it."""
        for _ in range(3):
            self.now_ms += int(POLICY.retention_s * 1000) + 1
            self.txid += 1
            self.files.add(file(0, self.txid, self.txid, self.now_ms))
            self.files.add(file(SNAPSHOT_LEVEL, 1, self.txid, self.now_ms))
        self.now_ms += int(POLICY.retention_s * 1000) + 1
        self.files -= set(expired(list(self.files), POLICY, self.now_ms).files)
        assert ranges(list(self.files)) == [(1, self.txid)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_every_promised_moment_stays_restorable_though_deletion_is_interrupted_anywhere(seed: int, steps: int) -> None:
    history = History(random.Random(seed))
    for _ in range(steps):
        history.step()
        history.check()
    history.check_bounds()
