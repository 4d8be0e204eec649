"""Taking over a replica."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apply_processes import Sql, script
from support.apply_replica import finish, replica_of, scan
from support.apply_source import Source

from walcast.dbfiles import PageReader
from walcast.errors import ConfigError, Corrupt, Stopped
from walcast.position import Position
from walcast.wal_writer import WalWriter
from walcast_follower.apply.applier import Applier


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.db.close()


def test_a_replica_is_recognised_by_its_content(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    path = applier.path
    assert applier.position == Position()
    assert applier.checksums.database == source.first_position.checksum
    for transaction in source.run(20):
        transaction.apply(applier, term=3)
    position = applier.position
    applier.close()
    again = Applier.open(path, tmp_path / "state")
    assert (again.position, again.term) == (position, 3)
    assert again.commit_pages == source.transactions[-1].commit_pages
    again.close()
    with Sql.on(path) as app:
        assert app("UPDATE accounts SET balance = 1 WHERE id = 1") == []
    changed = Applier.open(path, tmp_path / "state")
    assert (changed.position, changed.term) == (Position(), 0)
    assert scan(changed) == changed.checksums.database
    changed.close()


def test_an_open_that_fails_leaves_nothing_behind(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source.copy_to(tmp_path / "replica" / "app.db")

    def fail(*_: object) -> None:
        raise Corrupt("a page cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(PageReader, "read", fail)
        with pytest.raises(Corrupt):
            Applier.open(path, tmp_path / "state")
    with Sql.on(path) as app:
        assert app("UPDATE accounts SET balance = balance") == []
    applier = Applier.open(path, tmp_path / "state")
    applier.close()
    applier.close()
    with pytest.raises(Stopped):
        applier.begin()


def test_a_second_applier_is_refused(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    with script("apply_victim", str(applier.path), str(tmp_path / "other"), "/dev/null") as second:
        assert second.stdout is not None
        assert second.stdout.readline().startswith("Unavailable")
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


def test_only_databases_in_wal_mode_are_replicas(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Applier.open(tmp_path / "missing.db", tmp_path / "state")
    with Sql.on(tmp_path / "plain.db") as app:
        app("CREATE TABLE t (a)")
    with pytest.raises(ConfigError):
        Applier.open(tmp_path / "plain.db", tmp_path / "state")
    (tmp_path / "text.db").write_text("no database" * 1000)
    with pytest.raises(Corrupt):
        Applier.open(tmp_path / "text.db", tmp_path / "state")


def test_an_applier_whose_commit_was_interrupted_refuses_to_go_on(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applier = replica_of(source, tmp_path)
    path = applier.path
    first, second = source.grow(), source.transfer()
    first.apply(applier)

    def interrupt(self: WalWriter, header: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WalWriter, "_move_header", interrupt)
        with pytest.raises(KeyboardInterrupt):
            second.apply(applier)
    applier.rollback()
    with pytest.raises(Stopped):
        applier.begin()
    applier.close()
    again = Applier.open(path, tmp_path / "state")
    assert again.position in (first.position, second.position)
    again.close()
