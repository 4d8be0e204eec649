"""An archive that names a database and has nothing of it, as a first boot leaves it that was killed, its disk lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.folders import rows, write
from support.nodes import LOOPBACK, primary, walcast

from walcast.archive.identity import claim_archive, read_archive_id
from walcast.identity import OtherDatabase, make_database_id
from walcast.store import Store, open_store
from walcast_primary.archiving.ownership import Ownership

MINE, THEIRS = make_database_id(), make_database_id()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "archive"))
    claim_archive(made, THEIRS)
    return made


def claim(store: Store, *, comes: str = "", broken_off: bool = False) -> None:
    """By a database that takes what is empty; `comes`: an object that is there after the wait."""
    database: Any = SimpleNamespace(id=MINE, path=Path("app.db"))

    def wait(_: float) -> bool:
        if comes:
            store.put(comes, b"x", timestamp_ms=1)
        return broken_off

    Ownership(store, database, take_empty=True).claim(wait)


def test_it_is_taken_over_when_it_stays_empty(store: Store) -> None:
    claim(store)
    assert read_archive_id(store) == MINE


@pytest.mark.parametrize("before", [True, False])
def test_it_is_not_once_something_is_there(store: Store, before: bool) -> None:
    key = f"{store.level_prefix(9)}{1:016x}-{1:016x}.ltx"
    if before:
        store.put(key, b"x", timestamp_ms=1)
    with pytest.raises(OtherDatabase):
        claim(store, comes=key)
    assert read_archive_id(store) == THEIRS


def test_a_stop_is_not_held_up_by_the_wait(store: Store) -> None:
    with pytest.raises(OtherDatabase):
        claim(store, broken_off=True)
    assert read_archive_id(store) == THEIRS


def test_a_first_boot_that_was_killed_before_its_first_upload_does_not_keep_the_next_one_out(
    tmp_path: Path, store: Store
) -> None:
    db = tmp_path / "app.db"
    write(db, 1, 2)
    assert (
        walcast("primary", db, store.url, "--listen", LOOPBACK).returncode == 1
    )  # another database's, for all it knows
    with primary(db, store.url, "--restore") as node:
        node.wait_event("the archive is another database's but is empty; it is taken over if it stays empty")
        assert rows(db) == [1, 2]
