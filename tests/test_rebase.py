"""A node that left the set's history comes back onto it from the archive alone, and keeps what only it had."""

from __future__ import annotations

from pathlib import Path

from support.roles import archiving, demoted, make, promoted, reached, write
from support.writers import checkpointed, sql

from walcast.discarded import Circumstances, list_discarded
from walcast.statedir import StateDir
from walcast.store import Store, open_store
from walcast.terms import TermStart, first_txid
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.bootstrap import from_archive
from walcast_follower.bootstrap.rebase import catch_up, newest_term
from walcast_primary.database import Database


def second_term(path: Path, store: Store) -> Database:
    """A node that begins from the archive and goes on with it as the primary of term 2, with rows on other pages."""
    path.parent.mkdir()
    state = StateDir(path)
    from_archive(store, path, state.path)
    applier = Applier.open(path, state.path)
    start = applier.position
    database = promoted(applier, 2, state)
    database.loop.let_writers_go()
    with archiving(database, store, (TermStart(2, start, first_txid(start.txid)),)) as archiver:
        with sql(path) as app:
            app("INSERT INTO u VALUES ('of term 2')")
        assert reached(database, archiver)
    return database


def test_own_pages_do_not_show_through_the_archives_files_and_are_kept(tmp_path: Path) -> None:
    mine = tmp_path / "a" / "app.db"
    mine.parent.mkdir()
    make(mine)
    with sql(mine) as app:
        app("CREATE TABLE u (v)")
    database = Database(mine, "app")
    database.start()
    with open_store(str(tmp_path / "archive")) as store:
        with archiving(database, store) as archiver:
            write(mine, 5)
            assert reached(database, archiver)
        other = second_term(tmp_path / "b" / "app.db", store)
        with sql(mine) as app:
            app("INSERT INTO t VALUES (99, 'only here')")
        applier = demoted(database)
        state = database.state
        assert applier.term < newest_term(store, applier.term) == 2

        why = Circumstances(mine, "the test")
        assert catch_up(store, applier, why)

        assert (applier.position, applier.term) == (other.log.position, 2)
        [kept] = list_discarded(mine)
        assert kept.is_whole
        with sql(mine) as app:
            assert app("SELECT v FROM u") == [["of term 2"]]
            assert app("SELECT count(*) FROM t WHERE n = 99") == [[0]]
        assert not catch_up(store, applier, why), "there is nothing more"
        applier.close()
        state.close()
        other.stop()
    assert checkpointed(mine) == checkpointed(tmp_path / "b" / "app.db")


def test_a_node_that_is_on_the_history_only_gets_what_it_lacks(tmp_path: Path) -> None:
    mine = tmp_path / "a" / "app.db"
    mine.parent.mkdir()
    make(mine)
    with sql(mine) as app:
        app("CREATE TABLE u (v)")
    database = Database(mine, "app")
    database.start()
    with open_store(str(tmp_path / "archive")) as store:
        with archiving(database, store) as archiver:
            write(mine, 5)
            assert reached(database, archiver)
        other = second_term(tmp_path / "b" / "app.db", store)
        applier = demoted(database)
        assert catch_up(store, applier, Circumstances(mine, "the test"))
        assert applier.position == other.log.position
        applier.close()
        database.state.close()
        other.stop()
