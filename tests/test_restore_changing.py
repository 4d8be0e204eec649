"""Restores from an archive that is written, compacted and thinned out while they run."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import History, MemoryStore

from walcast.archive import ArchiveFile, list_files, restorable_txids
from walcast.errors import WalcastError
from walcast.restore import restore
from walcast.store import ObjectInfo


class Living(MemoryStore):
    """Every now and then a request is preceded by what a primary does: commit, compact, snapshot, remove."""

    def __init__(self, seed: int, pace: float) -> None:
        super().__init__()
        self._choose = random.Random(seed)
        self._pace = pace
        self._busy = True
        self.history = History(self, seed=seed)
        self.history.commit()
        self.history.put(9, 1, 1)
        for _ in range(60):
            self._step()
        self._busy = False

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._live()
        return super().get(key, start, length)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._live()
        yield from super().list(prefix)

    def stop(self) -> None:
        self._busy = True

    def _live(self) -> None:
        if not self._busy and self._choose.random() < self._pace:
            self._busy = True
            self._step()
            self._busy = False

    def _step(self) -> None:
        files = list_files(self)
        newest = max(file.max_txid for file in files)
        what = self._choose.random()
        if what < 0.6 or newest < 3:
            self.history.commit()
            self.history.put(0, newest + 1, newest + 1)
        elif what < 0.9:
            self._compact(files, self._choose.randint(1, 3))
        else:
            self.history.put(9, 1, newest)
            snapshots = [file for file in files if file.level == 9]
            if len(snapshots) > 1:
                old = [file for file in files if 0 < file.level < 9 and file.max_txid <= snapshots[1].max_txid]
                self.delete([file.key for file in [snapshots[0], *old]])

    def _compact(self, files: list[ArchiveFile], level: int) -> None:
        reached = max((f.max_txid for f in files if f.level == level), default=0)
        below = [file for file in files if file.level == level - 1 and file.min_txid > max(reached, 1)]
        if below:
            self.history.put(level, below[0].min_txid, below[-1].max_txid)
        if level == 1:  # level 0 keeps what level 1 has not, and one file more
            self.delete([file.key for file in files if file.level == 0 and file.max_txid <= reached][:-1])


def check(seed: int, pace: float) -> None:
    store = Living(seed, pace)
    newest = max(file.max_txid for file in list_files(store))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "app.db"
        report = restore(store, out)  # type: ignore[arg-type]
        assert report.restored is not None
        reached = report.restored.position.txid
        assert reached >= newest
        assert out.read_bytes() == store.history.states[reached]
        for txid in restorable_txids(list_files(store))[-3:]:
            try:
                restore(store, out, txid=txid, force=True)  # type: ignore[arg-type]
            except WalcastError:
                store.stop()
                assert txid not in restorable_txids(list_files(store))
                break
            assert out.read_bytes() == store.history.states[txid]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([0.05, 0.2, 0.5]))
def test_a_restore_succeeds_while_the_archive_changes(seed: int, pace: float) -> None:
    check(seed, pace)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([0.02, 0.1, 0.3, 0.6]))
def test_a_restore_always_succeeds_while_the_archive_changes(seed: int, pace: float) -> None:
    check(seed, pace)
