"""A primary that comes back after another node was promoted, and that nobody tells, does not archive over that one."""

from __future__ import annotations

from pathlib import Path

from support.folders import rows, write
from support.nodes import follower, poll, primary, wait_level, walcast

from walcast.archive import list_files
from walcast.restore import restore
from walcast.store import open_store
from walcast_node.commands.status_facts import local_status


def archived(archive: Path, copy: Path) -> list[int]:
    with open_store(str(archive)) as store:
        restore(store, copy, force=True)
    return rows(copy)


def test_its_database_does_not_become_the_newest_state_of_the_archive_unless_that_is_said(tmp_path: Path) -> None:
    db, edge, archive, copy = (tmp_path / name for name in ("app.db", "edge/app.db", "archive", "copy.db"))
    write(db, 1)
    with primary(db, archive) as home:
        home.wait_event("archived a snapshot")
        with follower(edge, home.address, "--archive", archive) as away:
            write(db, 2)
            wait_level(home.address, edge)
            assert poll(lambda: archived(archive, copy) == [1, 2])
            home.kill()
            write(db, 3)  # what only this node had
            assert walcast("promote", edge, "--force").returncode == 0
            write(edge, 4)
            assert away.stop() == 0
        assert archived(archive, copy) == [1, 2, 4]
        home.start().ready()
        home.wait_event("cannot archive, trying again")
        assert local_status(db)["databases"][0]["troubles"][0]["kind"] == "not-archived"
        with open_store(str(archive)) as store:
            assert len({file.level for file in list_files(store)}) == 2
        assert home.stop() == 1
        assert archived(archive, copy) == [1, 2, 4]
        assert walcast("snapshot", db, archive).returncode == 1
        home.arguments.append("--continue-archive")
        home.start().ready()
        home.wait_event("archived a snapshot", 2)
        assert home.stop() == 0
    assert archived(archive, copy) == [1, 2, 3]
