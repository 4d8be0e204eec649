"""Archives with any files and any damage: a restore is the database byte for byte, or an error and no file."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from support.archives import History, MemoryStore

from walcast.archive import ArchiveFile, list_files
from walcast.errors import WalcastError
from walcast.restore import RestoreReport, restore
from walcast.store import Store

COMMITS = 12
HOWS = ["missing", "truncated", "flipped", "longer", "swapped", "foreign"]


@dataclass
class Damaged:
    """An archive of `ours`, in which some objects are spoiled, some with what `theirs` has under the same name."""

    store: Store
    ours: History
    theirs: History
    foreign: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)

    def spoil(self, key: str, how: str, choose: random.Random) -> None:
        self.touched.add(key)
        body = bytearray(self.store.get(key) or b"nothing")
        keys = [file.key for file in list_files(self.store)]
        match how:
            case "missing":
                self.store.delete([key])
                return
            case "truncated":
                del body[choose.randrange(len(body)) :]
            case "flipped":
                body[choose.randrange(len(body))] ^= 1 << choose.randrange(8)
            case "longer":
                body += choose.randbytes(choose.randint(1, 30))
            case "swapped":
                other = choose.choice(keys)
                self.touched.add(other)
                there = self.store.get(other)
                self.store.put(other, bytes(body), timestamp_ms=0)
                body = bytearray(there)
            case "foreign":
                body = bytearray(self.theirs.store.get(key))
                self.foreign.add(key)
        self.store.put(key, bytes(body), timestamp_ms=0)


def archive(seed: int) -> Damaged:
    """Snapshots, single files and longer ranges, some of each; the same names of two databases."""
    choose = random.Random(seed)
    both = [History(MemoryStore(), seed=seed + i) for i in range(2)]
    ranges = {(9, 1, choose.randint(1, COMMITS)) for _ in range(choose.randint(1, 3))}
    ranges |= {(0, txid, txid) for txid in range(choose.randint(1, 4), COMMITS + 1)}
    for level in (1, 2):
        at = choose.randint(1, 6)
        while at <= COMMITS:
            end = min(COMMITS, at + choose.randint(0, 2 * level))
            ranges.add((level, at, end))
            at = end + 1
    for history in both:
        history.commit(COMMITS)
        for level, low, high in ranges:
            history.put(level, low, high)
    return Damaged(both[0].store, *both)


def never_wrong(seed: int, hows: list[str], txid: int | None, time_ms: int | None) -> None:
    choose = random.Random(seed + 1)
    made = archive(seed)
    with tempfile.TemporaryDirectory() as folder:
        for how in hows:
            files = list_files(made.store)
            if files:
                made.spoil(choose.choice(files).key, how, choose)
        files = list_files(made.store)
        out = Path(folder) / "new" / "app.db"
        try:
            report = restore(made.store, out, txid=txid, timestamp_ms=time_ms)
        except WalcastError as error:
            note(f"{type(error).__name__}: {error}")
            assert not list(Path(folder).iterdir())
            return
        assert [path.name for path in out.parent.iterdir()] == ["app.db"]
        judge(made, files, report, out.read_bytes(), txid, time_ms)


def judge(
    made: Damaged, files: list[ArchiveFile], report: RestoreReport, found: bytes, txid: int | None, time_ms: int | None
) -> None:
    """Dumb: compare with what was written. A foreign database can pass only where nothing in the archive denies it, or
    as many as three of its files are there."""
    assert report.restored is not None
    reached = report.restored.position.txid
    if txid is not None:
        assert reached == txid
    elif time_ms is not None:
        assert reached * 1000 <= time_ms
    else:
        assert reached == max(file.max_txid for file in files)
    if found == made.ours.states[reached]:
        return
    note(f"plan {[file.key for file in report.plan]}, foreign {made.foreign}")
    assert found == made.theirs.states[reached]
    assert report.plan[-1].key in made.foreign
    untouched = [file for file in files if file.max_txid == reached and file.key not in made.touched]
    assert len(untouched) < 2
    assert not untouched or len(made.foreign) >= 3


damages = st.lists(st.sampled_from(HOWS), max_size=6)
targets = st.one_of(st.none(), st.integers(1, COMMITS + 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), damages, targets)
def test_no_damage_makes_a_wrong_database(seed: int, hows: list[str], txid: int | None) -> None:
    never_wrong(seed, hows, txid, None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), damages, st.integers(1, COMMITS + 1))
def test_no_damage_makes_a_wrong_database_of_a_time(seed: int, hows: list[str], seconds: int) -> None:
    never_wrong(seed, hows, None, seconds * 1000 + 500)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(HOWS), max_size=15), targets)
def test_no_damage_at_all_makes_a_wrong_database(seed: int, hows: list[str], txid: int | None) -> None:
    never_wrong(seed, hows, txid, None)
    never_wrong(seed, hows, None, None if txid is None else txid * 1000)
