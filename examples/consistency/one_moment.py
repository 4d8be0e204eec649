"""All that a page shows is of one moment, when it asks for that."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

from examples.consistency.accounts import ACCOUNTS, SUM, connect, open_accounts, transfer
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell


def page(db: sqlite3.Connection, meanwhile: Callable[[], None]) -> int:
    """Asks twice, for the accounts of the first half and for those of the second: their sum."""
    lower = db.execute("SELECT sum(cents) FROM account WHERE id < ?", (ACCOUNTS // 2,)).fetchone()[0]
    meanwhile()
    upper = db.execute("SELECT sum(cents) FROM account WHERE id >= ?", (ACCOUNTS // 2,)).fetchone()[0]
    return int(lower + upper)


def page_of_one_moment(db: sqlite3.Connection, meanwhile: Callable[[], None]) -> int:
    """The same in a transaction, which a replica takes, too: it only reads."""
    db.execute("BEGIN")
    try:
        return page(db, meanwhile)
    finally:
        db.execute("COMMIT")


def show(stage: Stage, tell: Tell) -> None:
    """A page with two queries; between them a commit arrives at the replica."""
    primary, edge = stage.primary, stage.edges[0]
    with closing(connect(primary.database)) as app, closing(edge.replica.connect()) as db:
        open_accounts(app)
        stage.wait_for(edge)

        def a_commit_arrives() -> None:
            transfer(app)
            stage.wait_for(edge)

        shown = page(db, a_commit_arrives)
        tell.without(shown != SUM, f"a page with two queries, and a commit between them: {shown}, not {SUM}")
        shown = page_of_one_moment(db, a_commit_arrives)
        tell.given(shown == SUM, f"BEGIN before them: {shown}")
