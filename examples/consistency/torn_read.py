"""A reader never sees half a transaction."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from examples.consistency.accounts import SUM, connect, open_accounts, transfer, transfers
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell, until

STATES = 100


def begin_wal_anew(database: Path, app: sqlite3.Connection) -> None:
    """Transfer until SQLite writes its WAL from the start again; all that was in it is in the database then."""
    wal = database.with_name("app.db-wal")

    def header() -> bytes:
        with wal.open("rb") as file:
            return file.read(32)

    began = header()
    while header() == began:
        transfer(app)


def copy_while_written(database: Path, target: Path, app: sqlite3.Connection) -> str:
    """`cp app.db app.db-wal target/`, which takes its time: the sum that is found in the copy, or an error."""
    begin_wal_anew(database, app)
    data = database.read_bytes()
    first = data[: len(data) // 2]
    begin_wal_anew(database, app)
    target.mkdir()
    (target / "app.db").write_bytes(first + database.read_bytes()[len(first) :])
    (target / "app.db-wal").write_bytes(database.with_name("app.db-wal").read_bytes())
    try:
        with closing(sqlite3.connect(target / "app.db")) as copy:
            return str(copy.execute("SELECT sum(cents) FROM account").fetchone()[0])
    except sqlite3.DatabaseError as error:
        return str(error)


def show(stage: Stage, tell: Tell) -> None:
    """A copy of the files, and a replica, both while the app writes."""
    primary, edge = stage.primary, stage.edges[0]
    with closing(connect(primary.database)) as app:
        open_accounts(app)
        found = copy_while_written(primary.database, primary.folder / "copy", app)
    tell.without(found != str(SUM), f"a copy of the files while the app writes: {found}, not {SUM}")

    stage.wait_for(edge)
    sums, states = set(), set()
    with transfers(primary.database), closing(edge.replica.connect()) as reader:

        def look() -> bool:
            total, state = reader.execute("SELECT sum(cents), sum(id * cents) FROM account").fetchone()
            sums.add(total)
            states.add(state)
            return len(states) >= STATES

        until(look, f"{STATES} states at {edge}")
    tell.given(sums == {SUM}, f"the replica while the app writes: in all of {len(states)} states {SUM}")
