"""All that a page shows is of one moment, when it asks for that."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from examples.consistency.accounts import ACCOUNTS, SUM, connect, open_accounts, transfers
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell, until

PAGES = 100


def page(db: sqlite3.Connection) -> int:
    """Asks twice: for the accounts of the first half, and for those of the second."""
    return sum(
        db.execute(f"SELECT sum(cents) FROM account WHERE id {half} {ACCOUNTS // 2}").fetchone()[0]
        for half in ("<", ">=")
    )


def page_of_one_moment(db: sqlite3.Connection) -> int:
    """The same in a transaction, which a replica takes, too: it only reads."""
    db.execute("BEGIN")
    try:
        return page(db)
    finally:
        db.execute("COMMIT")


def show(stage: Stage, tell: Tell) -> None:
    """A page with two queries, while the app writes."""
    primary, edge = stage.primary, stage.edges[0]
    with closing(connect(primary.database)) as app:
        open_accounts(app)
    stage.wait_for(edge)
    with transfers(primary.database), closing(edge.replica.connect()) as db:
        until(lambda: page(db) != SUM, "a commit between two queries")
        tell.without(True, "two queries of a page: a commit came between them, and nothing adds up")
        right = sum(page_of_one_moment(db) == SUM for _ in range(PAGES))
        tell.given(right == PAGES, f"BEGIN before them: {right} of {PAGES} pages add up")
