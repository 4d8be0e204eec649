"""kill -9 of a primary that compacts, snapshots and deletes: after each the archive restores to a state that was."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.archiving import levels, restored, restored_by_litestream
from support.e2e_state import TOTAL, create
from support.nodes import Node, barrier, poll
from support.writers import checkpointed, pause, writer

from walcast.archive import SNAPSHOT_LEVEL
from walcast.store.directory import DirectoryStore

SEED = int(os.environ.get("WALCAST_TEST_SEED", "11"))
CONFIG = """
dbs:
  - path: {db}
    archive: {archive}
listen: 127.0.0.1:0
levels:
  - interval: 500ms
  - interval: 1s
  - interval: 2s
l0-retention: 500ms
snapshot:
  interval: 1500ms
  retention: 2s
"""


@pytest.mark.parametrize("kills", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_instants_the_archive_restores_and_the_next_primary_goes_on(
    tmp_path: Path, kills: int
) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    db, store = tmp_path / "app.db", DirectoryStore(tmp_path / "archive")
    create(db)
    config = tmp_path / "walcast.yml"
    config.write_text(CONFIG.format(db=db, archive=store.root))
    node = Node(["primary", "--config", str(config), "--json", "--log-format", "json"], tmp_path, "primary")
    try:
        with writer(db, pause_s=0.001, seed=SEED) as busy:
            for _ in range(kills):
                node.start()
                node.ready()
                pause(rng.uniform(0.2, 3.0))
                node.kill()
                if levels(store):  # else it was killed before its first snapshot was whole
                    check(store, tmp_path)
            busy.stop()
        node.start()
        address = node.ready()["listen"]
        with writer(db, pause_s=0.001, seed=SEED) as busy:  # a snapshot of all that is there leaves nothing to compact
            assert poll(lambda: 3 in levels(store)), levels(store)
            busy.stop()
        goal = barrier(address).txid
        assert poll(lambda: max(file.max_txid for files in levels(store).values() for file in files) >= goal)
        assert poll(lambda: len(levels(store)[SNAPSHOT_LEVEL]) <= 4), levels(store)
        assert node.stop() == 0
    finally:
        node.end()
    expected = checkpointed(db)
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


def check(store: DirectoryStore, folder: Path) -> None:
    """Both programs restore the same, and it is a state between two commits."""
    data = restored(store, folder / "ours.db")
    assert restored_by_litestream(store, folder / "theirs.db") == data
    with closing(sqlite3.connect(folder / "ours.db")) as connection:
        assert connection.execute("SELECT sum(balance) FROM accounts").fetchone()[0] == TOTAL
