"""What an owner does to the database file, under a primary or between two of its runs, ends in a right replica, or in
one line whose command mends it: the test does what the line says.

An app has written by then and was killed, so that there is a WAL, unless a case says `calm`.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from support.nodes import Node, follower, poll, primary, walcast
from support.users import APP, APP_GROUP, as_user, folder_for_all, needs_root
from support.writers import Sql, child

from walcast.errors import ConfigError
from walcast.filesystem import check_database_file

SOON_S = 10.0
ROWS = [f"{i}".ljust(3000, "x") for i in range(30)]  # more pages than a WAL of a few commits has
LINES_MOST = 2
Content = tuple[str, list[tuple[str]]]


def make(path: Path, *rows: str, mode: str = "WAL", encoding: str = "UTF-8", page_size: int = 4096) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in (f"page_size = {page_size}", f"encoding = '{encoding}'", f"journal_mode = {mode}"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("CREATE TABLE t (a TEXT)")
        db.executemany("INSERT INTO t VALUES (?)", [(row,) for row in rows])
    return path


def content(path: Path) -> Content | str:
    """As SQLite reads it now, or why it cannot."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as db:
            return db.execute("PRAGMA encoding").fetchone()[0], db.execute("SELECT a FROM t ORDER BY a").fetchall()
    except sqlite3.Error as error:
        return str(error)


def told(db: Path, *statements: str) -> None:
    """By an app that takes no for an answer."""
    with closing(sqlite3.connect(db, timeout=0.5, isolation_level=None)) as app:
        for statement in statements:
            try:
                app.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                assert "locked" in str(error) or "readonly" in str(error), error  # noqa: PT017 - most of them succeed


# What an owner does. `aside`: a folder for what he needs.


def vacuum_into_and_mv(db: Path, aside: Path) -> None:
    told(db, f"VACUUM INTO '{aside / 'new.db'}'")
    told(aside / "new.db", "INSERT INTO t VALUES ('new')")
    (aside / "new.db").rename(db)


def mv_in_wal_mode(db: Path, aside: Path) -> None:
    make(aside / "new.db", "new", *ROWS).rename(db)


def cp_a_backup(db: Path, aside: Path) -> None:
    shutil.copyfile(make(aside / "backup.db", "backup", *ROWS), db)


def cp_a_shorter_backup(db: Path, aside: Path) -> None:
    shutil.copyfile(make(aside / "backup.db", "backup"), db)


def cp_a_backup_in_rollback_mode(db: Path, aside: Path) -> None:
    shutil.copyfile(make(aside / "backup.db", "backup", *ROWS, "one", mode="DELETE"), db)


def restore_by_sqlite(db: Path, aside: Path) -> None:
    with closing(sqlite3.connect(make(aside / "backup.db", "backup"))) as backup, closing(sqlite3.connect(db)) as app:
        backup.backup(app)


def page_size_by_vacuum(db: Path, aside: Path) -> None:
    changes = "PRAGMA page_size = 8192", "VACUUM", "PRAGMA journal_mode = WAL", "INSERT INTO t VALUES ('later')"
    told(db, "PRAGMA journal_mode = DELETE", *changes)


def rollback_mode_and_back(db: Path, aside: Path) -> None:
    told(db, "PRAGMA journal_mode = DELETE", "INSERT INTO t VALUES ('a')", "PRAGMA journal_mode = WAL")
    told(db, "INSERT INTO t VALUES ('b')")


def another_encoding(db: Path, aside: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{db}{suffix}").unlink(missing_ok=True)
    make(db, "ü", encoding="UTF-16")


def rm(db: Path, aside: Path) -> None:
    db.unlink()


def truncated_to_nothing(db: Path, aside: Path) -> None:
    os.truncate(db, 0)


def garbage(db: Path, aside: Path) -> None:
    (aside / "garbage").write_bytes(b"garbage!" * 1000)
    (aside / "garbage").rename(db)


def rm_wal(db: Path, aside: Path) -> None:
    Path(f"{db}-wal").unlink(missing_ok=True)


def rm_wal_and_shm(db: Path, aside: Path) -> None:
    rm_wal(db, aside)
    Path(f"{db}-shm").unlink(missing_ok=True)


def wal_of_another(db: Path, aside: Path) -> None:
    with closing(sqlite3.connect(make(aside / "other.db", "other"), isolation_level=None)) as other:
        other.execute("INSERT INTO t VALUES ('in the WAL')")
        shutil.copyfile(aside / "other.db-wal", f"{db}-wal")


def locking_mode_exclusive(db: Path, aside: Path) -> None:
    told(db, "PRAGMA locking_mode = EXCLUSIVE", "INSERT INTO t VALUES ('exclusive')")


CHANGES = [
    vacuum_into_and_mv,
    mv_in_wal_mode,
    cp_a_backup,
    cp_a_shorter_backup,
    cp_a_backup_in_rollback_mode,
    restore_by_sqlite,
    page_size_by_vacuum,
    rollback_mode_and_back,
    another_encoding,
    rm,
    truncated_to_nothing,
    garbage,
    rm_wal,
    rm_wal_and_shm,
    wal_of_another,
    locking_mode_exclusive,
]
# Each of these once ended in a replica that stayed another database, or with a state that nobody had meant archived.
CHEAP = {
    (cp_a_backup_in_rollback_mode, "running", True),
    (cp_a_backup, "between", False),
    (truncated_to_nothing, "between", False),
    (wal_of_another, "running", False),
}


def cases() -> list[Any]:
    found = []
    for change in CHANGES:
        for when in ("running", "between"):
            for calm in (False, True):
                marks = () if (change, when, calm) in CHEAP else (pytest.mark.slow,)
                name = f"{change.__name__}-{when}{'-calm' if calm else ''}"
                found.append(pytest.param(change, when, calm, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("change", "when", "calm"), cases())
def test_whatever_an_owner_does_ends_in_a_right_replica_or_in_a_line_that_mends_it(
    tmp_path: Path, change: Callable[[Path, Path], None], when: str, calm: bool
) -> None:
    db, replica, archive = tmp_path / "here" / "app.db", tmp_path / "edge" / "app.db", tmp_path / "archive"
    for folder in (db.parent, tmp_path / "aside"):
        folder.mkdir()
    make(db, *ROWS)
    with ExitStack() as stack:
        node = stack.enter_context(primary(db, str(archive)))
        stack.enter_context(follower(replica, node.address))
        app = None if calm else stack.enter_context(child("e2e_sql.py", str(db), "10"))
        if app is not None:
            Sql(app)("INSERT INTO t VALUES ('by the app')")
        assert poll(lambda: is_right(db, replica), SOON_S)
        assert poll(lambda: node.events("archived a snapshot"), SOON_S)
        if when == "between":
            node.stop()
        if app is not None and when == "between":
            app.kill()
        change(db, tmp_path / "aside")
        if app is not None:
            app.kill()
        if when == "between":
            node.start()
        for _ in range(LINES_MOST):
            if not ends(node, db, replica):
                return
            mend(last_line(node), db, archive, node)
            node.start()
        assert not ends(node, db, replica), last_line(node)


def is_right(db: Path, replica: Path) -> bool:
    found = content(db)
    return not isinstance(found, str) and content(replica) == found


def ends(node: Node, db: Path, replica: Path) -> bool:
    """Does it end, as it must where the replica does not come to what the database is? Neither is the fault."""
    looks = 0

    def settled() -> bool:
        nonlocal looks
        looks = looks + 1 if is_right(db, replica) else 0
        return not node.running or looks > 15  # 0.75 s: longer than it takes to look at the files

    assert poll(settled, SOON_S, 0.05), (content(db), content(replica), node.err.read_text()[-2000:])
    if node.running:
        return False
    assert node.wait() == 1
    return True


def last_line(node: Node) -> str:
    line: str = node.events("failed")[-1]["error"]
    return line


def mend(line: str, db: Path, archive: Path, node: Node) -> None:
    """As somebody does who has only this line."""
    command = re.search(r"walcast (restore) (\S+) (-o) (\S+) (--force)", line)
    if command is not None:
        done = walcast(*(word.replace("ARCHIVE_URL", str(archive)) for word in command.groups()))
        assert done.returncode == 0, done.stderr
    elif left := re.search(r"\(rm ([^)]+)\)", line):
        for path in left[1].split():
            Path(path).unlink()
    elif "--restore" in line:
        node.arguments.append("--restore")
    elif f"remove {db}-wal and {db}-shm" in line or "remove that file and the -shm beside it" in line:
        for suffix in ("-wal", "-shm"):
            Path(f"{db}{suffix}").unlink(missing_ok=True)
    else:
        assert "the next start goes on" in line, line


def test_a_wal_that_is_left_of_another_database_is_refused_until_it_is_gone(tmp_path: Path) -> None:
    """SQLite would lay it over the new one: neither of the two would be what is read."""
    db = make(tmp_path / "app.db", *ROWS)
    (tmp_path / "aside").mkdir()
    with primary(db) as node:
        with child("e2e_sql.py", str(db), "10") as app:
            Sql(app)("INSERT INTO t VALUES ('by the app')")
            node.stop()
            app.kill()
        mv_in_wal_mode(db, tmp_path / "aside")
        for _ in range(2):
            assert node.start().wait() == 1
        mend(last_line(node), db, tmp_path, node)
        node.start().ready()
        assert content(db) == ("UTF-8", sorted((row,) for row in ("new", *ROWS)))


@needs_root
def test_a_database_that_its_user_may_not_open_says_who_may(tmp_path: Path) -> None:
    with folder_for_all() as folder:
        folder.chmod(0o777)
        db = make(folder / "app.db", "x")
        os.chown(db, APP, APP_GROUP)
        db.chmod(0)

        def refused() -> str:
            try:
                check_database_file(db)
            except ConfigError as error:
                return str(error)
            return ""

        found = re.search(r"chmod (\S+) (\S+)", as_user(APP, APP_GROUP, refused))
        assert found
        assert (found[1], found[2]) == ("u+rwX", str(db))
        db.chmod(0o600)
        assert as_user(APP, APP_GROUP, refused) == ""
