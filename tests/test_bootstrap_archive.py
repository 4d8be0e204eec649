"""A follower and an archive that is kept in shape meanwhile: compacted, thinned out, damaged in places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.archiving import archived, archiving, compact_now, levels
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.nodes import poll
from support.writers import checkpointed, sql

from walcast.archive import SNAPSHOT_LEVEL
from walcast.statedir import StateDir
from walcast.store.directory import DirectoryStore
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.bootstrap import archived_since, from_archive
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

ONLY_COMPACTED = ArchivePolicy(level_intervals_s=(3600.0,), raw_retention_s=0.0)
COMMIT = "UPDATE accounts SET balance = balance + 1"


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


def test_a_replica_catches_up_from_a_compacted_file_that_begins_before_it(app: Served, tmp_path: Path) -> None:
    store, edge = DirectoryStore(tmp_path / "archive"), tmp_path / "f" / "app.db"
    edge.parent.mkdir()
    state = StateDir(edge)
    with archiving(app, store, ONLY_COMPACTED) as archiver:
        write(app, 3)
        assert archived(app, archiver)
        fresh = from_archive(store, edge, state.path)
        write(app, 3)
        assert archived(app, archiver)
        compact_now(archiver)
        assert poll(lambda: 0 not in levels(store))
    (compacted,) = levels(store)[1]
    applier = Applier.open(edge, state.path, fresh)
    assert compacted.min_txid <= applier.position.txid < compacted.max_txid
    assert archived_since(store, applier)
    assert applier.position == app.position
    applier.close()
    state.close()
    app.stop()
    assert checkpointed(edge) == checkpointed(app.path)


@pytest.mark.parametrize("damaged_level", [1, SNAPSHOT_LEVEL])
def test_a_bootstrap_goes_around_what_is_damaged(app: Served, tmp_path: Path, damaged_level: int) -> None:
    store, edge = DirectoryStore(tmp_path / "archive"), tmp_path / "f" / "app.db"
    edge.parent.mkdir()
    state = StateDir(edge)
    with archiving(app, store) as archiver:
        write(app, 3)
        assert archived(app, archiver)
        compact_now(archiver)
        if damaged_level == SNAPSHOT_LEVEL:
            assert archiver._upkeep is not None
            archiver._upkeep._take_snapshot()
    victim = max(levels(store)[damaged_level], key=lambda file: file.max_txid)
    path = store.root / victim.key
    path.write_bytes(path.read_bytes()[:-100])
    assert from_archive(store, edge, state.path) is not None
    state.close()
    app.stop()
    assert checkpointed(edge) == checkpointed(app.path)
