"""One replica never goes back in time, whoever reads it and whatever happens to its follower and its primary."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from examples.consistency.guestbook import Visitor
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell, until

NEWEST = "SELECT coalesce(max(id), 0) FROM post"


def copy_into_place(database: Path, target: Path) -> None:
    """A replica as cron would make it: copy, then rename."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(f"{target}.new")) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file
    os.replace(f"{target}.new", target)  # noqa: PTH105 - as the script would


@contextmanager
def watched(new: Callable[[], sqlite3.Connection]) -> Iterator[list[int]]:
    """What two workers of an app see by turns: one opens the database for each page, the other once and for all."""
    seen, over = [0], threading.Event()

    def read() -> None:
        with closing(new()) as kept:
            while not over.wait(0.001):
                with closing(new()) as fresh:
                    seen.extend(db.execute(NEWEST).fetchone()[0] for db in (fresh, kept))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def show(stage: Stage, tell: Tell) -> None:
    """A copy that is replaced now and then, and a replica whose follower and primary are killed."""
    stage.serve()
    primary, edge = stage.primary, stage.edges[-1]
    visitor = Visitor()
    copy = edge.folder / "copied.db"
    copy_into_place(primary.database, copy)
    with watched(lambda: sqlite3.connect(copy)) as seen:
        visitor.post(primary, "One more")
        copy_into_place(primary.database, copy)
        until(lambda: seen[-1] < max(seen), "an old page", 5.0)
    tell.without(sorted(seen) != seen, f"a copy that is renamed into place: post {max(seen)}, then {seen[-1]}")

    with watched(edge.replica.connect) as seen:

        def arrives(text: str) -> None:
            before = max(seen)
            visitor.post(stage.primary, text)
            until(lambda: seen[-1] > before, f"{text!r} at {edge}")

        arrives("Before")
        edge.kill()
        edge.start()
        arrives("After a kill -9 of the follower")
        primary.kill()
        visitor.post(edge, "While nobody is the primary")  # waits for one
        arrives("After a kill -9 of the primary")
    primary.start()
    tell.given(sorted(seen) == seen, f"{len(seen)} reads over a kill -9 of follower and primary: never an older page")
