"""A database between capture and applier, in this process; its apps are elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.archiving import CALM
from support.nodes import poll
from support.writers import sql

from walcast.store import Store
from walcast.terms import TermStart
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.position_journal import Journal
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.database import Database
from walcast_primary.recovery.resume import State


def make(path: Path) -> None:
    with sql(path) as app:
        app("PRAGMA journal_mode=WAL")
        app("CREATE TABLE t (n INTEGER, v)")


def demoted(database: Database) -> Applier:
    """Capture → applier, as a member does it."""
    captured = database.loop.hold_writers().result(30.0)
    held = database.release()
    journal = Journal(held.state.path)
    journal.append(database.log.term, captured.position, 0)
    journal.close()
    return Applier.adopt(held)


def promoted(applier: Applier, term: int, state: object) -> Database:
    """Applier → capture; writers are held still."""
    at = State(applier.checksums, applier.position, applier.timestamp_ms)
    held = applier.release(state)  # type: ignore[arg-type]
    database = Database(held.files.path, "app", held=held)
    database.start(at=at, term=term)
    return database


@contextmanager
def archiving(database: Database, store: Store, history: tuple[TermStart, ...] = ()) -> Iterator[Archiver]:
    archiver = Archiver(database, store, CALM, history=history, interval_s=0.05)
    archiver.start()
    try:
        yield archiver
    finally:
        archiver.stop()


def write(path: Path, count: int) -> None:
    with sql(path) as app:
        for _ in range(count):
            app("INSERT INTO t VALUES (1, randomblob(2000))")


def reached(database: Database, archiver: Archiver) -> bool:
    goal = database.loop.barrier().result(30.0).position.txid
    return bool(poll(lambda: archiver.txid >= goal))
