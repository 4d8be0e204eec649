"""A state folder is believed only where nobody else could have written it, and nothing in it is reached by a link."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support.nodes import walcast
from support.users import (
    APP,
    APP_GROUP,
    STRANGER,
    STRANGER_GROUP,
    as_user,
    folder_for_all,
    modes,
    needs_root,
    umask,
)

from walcast import local
from walcast.errors import ConfigError, Unavailable
from walcast.identity import make_database_id, read_database_id, write_database_id
from walcast.locks import try_lock
from walcast.planted import DanglingLink, Planted, check_not_planted, resolve_database
from walcast.position import Position
from walcast.statedir import StateDir, UnsafeState, in_use, open_folder, open_state_file, state_dir
from walcast.statusfile import State, Status, StatusWriter, read_last_status, read_status
from walcast.terms import FOLLOWER, Standing, read_standing, write_standing

STATUS = Status(state=State.STREAMING, term=3, position=Position(7, 8), app_url="http://10.0.0.1:8000")


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    path.touch(0o600)
    return path


@pytest.fixture
def public() -> Iterator[Path]:
    """As /tmp: everybody may make files here."""
    with folder_for_all(0o1777) as folder:
        yield folder


def fill(database: Path) -> Path:
    """A state folder as a node leaves it."""
    state = StateDir(database)
    write_database_id(state.path, make_database_id())
    write_standing(state.path, Standing(FOLLOWER, 3, "10.0.0.9:7420"))
    StatusWriter(state.path).write(STATUS)
    state.close()
    return state.path


def readers(database: Path) -> dict[str, Callable[[], object]]:
    folder = state_dir(database)
    return {
        "role": lambda: read_standing(folder),
        "database-id": lambda: read_database_id(folder),
        "status": lambda: read_status(database),
        "socket": lambda: local.ask(database, "status").__enter__(),
    }


@pytest.mark.parametrize("mask", [0o000, 0o777])
def test_all_of_it_is_for_its_owner_only_whatever_the_umask(db: Path, mask: int) -> None:
    with umask(mask):
        folder = fill(db)
        socket = local.listen(db)
    assert {name for name, mode in modes(folder).items() if mode != 0o600} == set()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "socket" in modes(folder)
    socket.close()


def test_what_an_older_version_left_open_is_closed_to_others(db: Path) -> None:
    folder = fill(db)
    (folder / "log").mkdir()
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    StateDir(db).close()
    assert modes(folder) == {name: 0o700 if name == "log" else 0o600 for name in modes(folder)} | {"status": 0o644}
    StatusWriter(folder).close()  # it follows the database
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "status").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o702])
def test_a_folder_that_others_may_write_to_is_refused_and_not_believed(db: Path, mode: int) -> None:
    folder = fill(db)
    folder.chmod(mode)
    with pytest.raises(UnsafeState) as refused:
        StateDir(db)
    assert refused.value.path == folder
    for name, read in readers(db).items():
        with pytest.raises((UnsafeState, Unavailable)):
            read()
        assert (folder / name).exists() or name == "socket"
    assert read_last_status(folder) == Status()
    assert in_use(db) is None


def test_a_folder_that_is_a_link_is_refused_and_not_believed(db: Path, tmp_path: Path) -> None:
    folder = fill(db)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to("elsewhere")
    before = modes(tmp_path / "elsewhere")
    with pytest.raises(UnsafeState):
        StateDir(db)
    for read in readers(db).values():
        with pytest.raises((UnsafeState, Unavailable)):
            read()
    with pytest.raises(UnsafeState):
        write_database_id(folder, make_database_id())
    assert modes(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("name", ["status", "lock", "positions", "log", "role", "id", "socket", "boot"])
def test_a_link_in_the_folder_is_refused_and_nothing_is_written_behind_it(db: Path, tmp_path: Path, name: str) -> None:
    folder = fill(db)
    victim = tmp_path / "victim"
    victim.write_bytes(b"V" * 3000)
    victim.chmod(0o644)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    with pytest.raises(UnsafeState) as refused:
        StateDir(db)
    assert refused.value.path == folder / name
    assert (victim.read_bytes(), victim.stat().st_mode & 0o777) == (b"V" * 3000, 0o644)


@pytest.mark.parametrize("name", ["role", "database-id"])
def test_what_is_read_is_not_read_through_a_link(db: Path, tmp_path: Path, name: str) -> None:
    folder = fill(db)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UnsafeState) as refused:
        readers(db)[name]()
    assert refused.value.path == folder / name


def test_a_fifo_in_the_folder_holds_nobody(db: Path) -> None:
    folder = fill(db)
    for name in ("role", "status", "database-id"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises((UnsafeState, Unavailable, OSError)):
            readers(db)[name]()
    assert read_last_status(folder) == Status()


def test_a_missing_folder_says_nothing(db: Path) -> None:
    folder = state_dir(db)
    assert (read_standing(folder), read_database_id(folder), in_use(db)) == (None, None, False)
    assert read_database_id(db / "below a file") is None
    with pytest.raises(FileNotFoundError), open_state_file(folder, "role"):
        pass


def test_a_link_to_the_database_leads_to_the_folder_beside_the_file(db: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "app.db"
    link.symlink_to(db)
    assert resolve_database(link) == db


def test_a_dangling_link_is_no_place_for_a_database(tmp_path: Path) -> None:
    link = tmp_path / "app.db"
    link.symlink_to(tmp_path / "nowhere.db")
    with pytest.raises(DanglingLink):
        resolve_database(link)
    answer = walcast("follower", link, "--primary", "127.0.0.1:9")
    assert answer.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]


# Another user of the machine


@needs_root
def test_a_folder_that_a_stranger_made_is_refused_and_not_believed(public: Path) -> None:
    db = public / "app.db"
    db.touch(0o600)
    as_user(STRANGER, STRANGER_GROUP, partial(_plant, db))
    with pytest.raises(UnsafeState) as refused:
        StateDir(db)
    assert refused.value.path == state_dir(db)
    for read in readers(db).values():
        with pytest.raises((UnsafeState, Unavailable)):
            read()
    assert read_last_status(state_dir(db)) == Status()
    answer = walcast("primary", db, "--listen", "127.0.0.1:0")
    assert answer.returncode == 1
    assert (state_dir(db) / "role").exists()  # and it is left as it was


def _plant(database: Path) -> None:
    fill(database)
    facts = {"role": "follower", "term": 9, "primary": "127.0.0.1:9", "lease": False, "history": []}
    (state_dir(database) / "role").write_text(json.dumps(facts))


@needs_root
def test_a_stranger_cannot_take_the_lock_or_see_what_is_in_the_folder(public: Path) -> None:
    db = public / "app.db"
    db.touch(0o666)
    db.chmod(0o666)  # he may even write to the database
    folder = fill(db)
    StatusWriter(folder).close()

    def attack() -> dict[str, str]:
        got = {}
        for name in ("lock", "role", "database-id", "id", "log", "socket", "."):
            try:
                fd = os.open(folder / name, os.O_RDONLY)
                got[name] = f"opened, locked: {try_lock(fd, 0, exclusive=False)}"
            except (PermissionError, FileNotFoundError):
                pass
        return got

    assert as_user(STRANGER, STRANGER_GROUP, attack) == {}
    StateDir(db).close()


@needs_root
@pytest.mark.parametrize(("mode", "may"), [(0o600, ""), (0o640, "group"), (0o660, "group"), (0o644, "group stranger")])
def test_who_may_read_the_database_may_read_the_status_file_and_nobody_else(public: Path, mode: int, may: str) -> None:
    """walcast runs as the database's owner."""
    public.chmod(0o777)
    db = public / "app.db"
    db.touch()
    os.chown(db, APP, APP_GROUP)
    db.chmod(mode)
    as_user(APP, APP_GROUP, partial(fill, db))
    read = partial(_seen, db)
    assert as_user(APP, APP_GROUP, read) == "7"
    assert (as_user(STRANGER, STRANGER_GROUP, read, [APP_GROUP]) == "7") is ("group" in may)
    assert (as_user(STRANGER, STRANGER_GROUP, read) == "7") is ("stranger" in may)
    assert as_user(STRANGER, STRANGER_GROUP, partial(_opened, db), [APP_GROUP]) is ("group" in may)


def _seen(database: Path) -> str:
    try:
        return str(read_status(database).position.txid)
    except Unavailable:
        return "nothing"


def _opened(path: Path) -> bool:
    try:
        path.read_bytes()
    except PermissionError:
        return False
    return True


@needs_root
def test_the_databases_owner_reads_the_status_where_root_runs_walcast(public: Path) -> None:
    db = public / "app.db"
    db.touch()
    os.chown(db, APP, APP_GROUP)
    db.chmod(0o600)
    folder = fill(db)
    assert as_user(APP, APP_GROUP, partial(_seen, db)) == "7"
    assert as_user(STRANGER, STRANGER_GROUP, partial(_seen, db), [APP_GROUP]) == "nothing"
    assert not as_user(APP, APP_GROUP, partial(_opened, folder / "role"))
    StateDir(db).close()  # and the folder stays one that root can keep


@needs_root
def test_a_group_that_the_process_is_not_in_is_not_replaced_by_its_own(public: Path) -> None:
    """The database is its owner's and group's; walcast runs as its owner, who is not in the group."""
    public.chmod(0o777)
    db = public / "app.db"
    db.touch()
    os.chown(db, APP, STRANGER_GROUP)
    db.chmod(0o640)
    as_user(APP, APP_GROUP, partial(fill, db))
    assert as_user(APP + 7, 65534, partial(_seen, db), [APP_GROUP]) == "nothing"


@needs_root
def test_root_reads_what_the_databases_owner_keeps_and_does_not_keep_it_for_him(public: Path) -> None:
    public.chmod(0o777)
    db = public / "app.db"
    db.touch()
    os.chown(db, APP, APP_GROUP)
    as_user(APP, APP_GROUP, partial(fill, db))
    standing = read_standing(state_dir(db))
    assert standing is not None
    assert standing.term == 3
    with pytest.raises(UnsafeState) as refused:
        StateDir(db)
    assert refused.value.path == state_dir(db)
    write_database_id(state_dir(db), make_database_id())  # as a restore does
    assert {path.lstat().st_uid for path in state_dir(db).iterdir()} == {APP}


@needs_root
def test_what_was_put_into_a_folder_while_it_was_open_is_found(db: Path) -> None:
    folder = fill(db)
    (folder / "positions").touch()
    os.chown(folder / "positions", STRANGER, STRANGER_GROUP)
    with pytest.raises(UnsafeState) as refused:
        StateDir(db)
    assert refused.value.path == folder / "positions"


@needs_root
def test_nobody_can_put_a_file_or_a_link_where_a_replica_is_to_be(public: Path) -> None:
    replica, link, mine = public / "replica.db", public / "link.db", public / "mine.db"
    mine.touch()

    def plant() -> None:
        replica.touch(0o666)
        link.symlink_to(mine)

    as_user(STRANGER, STRANGER_GROUP, plant)
    with pytest.raises(Planted):
        check_not_planted(replica)
    with pytest.raises(Planted):
        resolve_database(link)
    check_not_planted(mine)
    answer = walcast("follower", replica, "--primary", "127.0.0.1:9")
    assert answer.returncode == 1
    answer = walcast("restore", public, "-o", replica, "--force")
    assert answer.returncode == 1
    assert replica.stat().st_size == 0


@needs_root
def test_a_file_that_an_admin_made_for_the_app_is_no_stranger_in_the_apps_folder(public: Path) -> None:
    public.chmod(0o755)
    replica = public / "replica.db"
    replica.touch()
    os.chown(replica, APP, APP_GROUP)
    check_not_planted(replica)


def test_a_read_of_the_status_costs_an_app_little(db: Path) -> None:
    fill(db)
    start = time.process_time()
    for _ in range(1000):
        read_status(db)
    assert time.process_time() - start < 1.0  # ten to twenty microseconds each, on a quiet machine


def test_the_folder_may_be_opened_by_its_owner(db: Path) -> None:
    os.close(open_folder(fill(db), to_keep=True))
    assert issubclass(UnsafeState, ConfigError)
