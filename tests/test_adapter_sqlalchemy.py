"""`walcast.adapters.sqlalchemy` at a real primary and a real follower, which tests may pause."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    create_engine,
    delete,
    event,
    func,
    insert,
    lambda_stmt,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.exc import InvalidRequestError, OperationalError, ResourceClosedError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.schema import CreateTable
from support.nodes import ENVIRONMENT, PATIENCE_S, Node, follower, primary, wait_level

import walcast
from walcast.adapters.sqlalchemy import RoutingSession, replica_engine

FAR = walcast.Token("1-ffffff")


class Base(DeclarativeBase):
    pass


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@dataclass
class Pair:
    """A primary's database and its replica; what tests did to the engines, by the engine's name."""

    db: Path
    replica: Path
    primary: Node
    follower: Node
    engines: dict[str, Engine] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)

    def add(self, title: str) -> walcast.Token:
        """Commit a book on the primary, as somebody else does; what covers it."""
        with closing(sqlite3.connect(self.db, timeout=10)) as db, db:
            db.execute("INSERT INTO books (title) VALUES (?)", [title])
        return walcast.Primary(self.db).barrier()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The follower applies nothing."""
        self.follower.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.follower.signal(signal.SIGCONT)

    def session(self, **options: Any) -> RoutingSession:
        made = sessionmaker(class_=RoutingSession, **self.engines, **options)
        return made()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("sqlalchemy")
    # A path that a URL or a URI would take for something else.
    db, replica = directory / "app.db", directory / "edge 100%?mode=rw#" / "app.db"
    with closing(sqlite3.connect(db)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT NOT NULL)")
    with primary(db) as serving, follower(replica, serving.address) as following:
        yield Pair(db, replica, serving, following)


@pytest.fixture
def pair(processes: Pair) -> Iterator[Pair]:
    """Level, with one book, and an engine for each side."""
    with closing(sqlite3.connect(processes.db, timeout=10)) as db, db:
        db.execute("DELETE FROM books")
        db.execute("INSERT INTO books VALUES (1, 'Emma')")
    wait_level(processes.primary.address, processes.replica)
    writing = create_engine(f"sqlite:///{processes.db}")
    processes.engines = {"primary": writing, "replica": replica_engine(processes.replica)}
    processes.used = []
    for name, engine in processes.engines.items():
        note(engine, name, processes.used)
    yield processes
    for engine in processes.engines.values():
        engine.dispose()


def note(engine: Engine, name: str, used: list[str]) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def executing(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement != "BEGIN":
            used.append(name)


def titles(session: Session) -> list[str]:
    return list(session.scalars(select(Book.title).order_by(Book.id)))


# The engine


def test_what_the_primary_commits_is_read_through_the_orm(pair: Pair) -> None:
    token = pair.add("Persuasion")
    engine = pair.engines["replica"].execution_options(walcast_token=token, walcast_wait_s=PATIENCE_S)
    with Session(engine) as session:
        assert [book.title for book in session.scalars(select(Book).order_by(Book.id))] == ["Emma", "Persuasion"]
        assert session.get_one(Book, 1).title == "Emma"


def test_all_statements_of_a_transaction_see_one_moment(pair: Pair) -> None:
    with Session(pair.engines["replica"]) as session:
        assert titles(session) == ["Emma"]
        walcast.Replica(pair.replica).wait_for(pair.add("Persuasion"), PATIENCE_S)
        assert titles(session) == ["Emma"]
        assert session.scalar(select(func.count()).select_from(Book)) == 1
        session.commit()
        assert titles(session) == ["Emma", "Persuasion"]


def test_under_autocommit_each_statement_sees_the_newest(pair: Pair) -> None:
    with pair.engines["replica"].connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.scalar(text("SELECT count(*) FROM books")) == 1
        walcast.Replica(pair.replica).wait_for(pair.add("Persuasion"), PATIENCE_S)
        assert connection.scalar(text("SELECT count(*) FROM books")) == 2
    with pair.engines["replica"].connect() as connection:  # the same connection of the pool, as it was
        assert connection.scalar(text("SELECT count(*) FROM books")) == 2
        assert connection.connection.dbapi_connection.in_transaction  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "statement",
    [insert(Book).values(title="x"), update(Book).values(title="x"), delete(Book), text("CREATE TEMP TABLE mine (a)")],
)
def test_a_write_is_refused_and_changes_nothing(pair: Pair, statement: Any) -> None:
    with pair.engines["replica"].connect() as connection:
        with pytest.raises(
            OperationalError, match=f"write at the primary, which is at {pair.primary.address}"
        ) as refused:
            connection.execute(statement)
        assert isinstance(refused.value.orig, walcast.ReadOnlyReplica)
        assert connection.execute(text("SELECT title FROM books")).all() == [("Emma",)]


def test_a_flush_is_refused_and_its_session_goes_on_after_a_rollback(pair: Pair) -> None:
    with Session(pair.engines["replica"]) as session:
        session.add(Book(title="x"))
        with pytest.raises(OperationalError, match="attempt to write a readonly database"):
            session.commit()
        session.rollback()
        assert titles(session) == ["Emma"]


def test_a_token_that_is_not_applied_in_time_reads_nothing(pair: Pair) -> None:
    engine = pair.engines["replica"]
    with engine.connect().execution_options(walcast_token=FAR, walcast_wait_s=0.01) as connection:
        with pytest.raises(walcast.StaleReplica):
            connection.execute(select(Book))
        with pytest.raises((ResourceClosedError, InvalidRequestError)):  # not now an older state, without a transaction
            connection.execute(select(Book))
    with Session(engine.execution_options(walcast_token=FAR, walcast_wait_s=0.01)) as session:
        with pytest.raises(walcast.StaleReplica):
            titles(session)
        with pytest.raises(walcast.StaleReplica):
            titles(session)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert pair.used == []


def test_connections_go_from_thread_to_thread(pair: Pair) -> None:
    engine, together, seen = pair.engines["replica"], Barrier(5), []

    def read() -> None:
        for _ in range(5):
            with Session(engine) as session:
                seen.append(titles(session))
        together.wait(PATIENCE_S)

    threads = [Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    together.wait(PATIENCE_S)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert seen == [["Emma"]] * 20
    with pytest.raises(OperationalError), Session(engine) as session:
        session.execute(delete(Book))


def test_options_of_create_engine_and_of_sqlite3_are_taken(pair: Pair) -> None:
    engine = replica_engine(
        pair.replica, pool_size=1, max_overflow=0, connect_args={"timeout": 1.5}, execution_options={"mine": 1}
    )
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA busy_timeout")) == 1500
        assert connection.get_execution_options()["mine"] == 1
        assert engine.pool.size() == 1  # type: ignore[attr-defined]
    engine.dispose()


def test_a_replica_that_is_not_there_yet_says_so(tmp_path: Path) -> None:
    engine = replica_engine(tmp_path / "app.db")
    with pytest.raises(walcast.Unavailable, match="has a follower made it yet"), engine.connect():
        pass


FORK = """
import os, sys
from sqlalchemy import text
from walcast.adapters.sqlalchemy import replica_engine

engine = replica_engine(sys.argv[1])
def mine():
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT title FROM books")) == "Emma"
        return id(connection.connection.dbapi_connection)
parent, pool = mine(), engine.pool
with engine.connect():  # one is in use at the fork
    pid = os.fork()
    if pid == 0:
        assert engine.pool is not pool and engine.pool.checkedin() == 0
        assert mine() not in (parent,)
        os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert engine.pool is pool and mine() == parent
"""


def test_a_forked_process_opens_connections_of_its_own(pair: Pair) -> None:
    said = subprocess.run(
        [sys.executable, "-c", FORK, str(pair.replica)],
        env=ENVIRONMENT,
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr


# The session


def test_reads_go_to_the_replica_and_after_the_first_write_to_the_primary(pair: Pair) -> None:
    with pair.session() as session:
        assert titles(session) == ["Emma"]
        session.add(Book(title="Persuasion"))
        assert titles(session) == ["Emma", "Persuasion"]  # flushed first, then read where it was written
        assert session.get_one(Book, 1).title == "Emma"
        assert session.scalar(text("SELECT count(*) FROM books")) == 2
        assert pair.used == ["replica", "primary", "primary", "primary", "primary"]
        session.rollback()
        assert titles(session) == ["Emma"]
        assert pair.used[5:] == ["replica"]


def test_what_was_committed_is_read_back_from_the_replica(pair: Pair) -> None:
    with pair.session(wait_s=PATIENCE_S) as session:
        for n in range(20):
            book = Book(title=f"Book {n}")
            session.add(book)
            session.commit()
            pair.used.clear()
            assert book.title == f"Book {n}"  # expired by the commit
            assert pair.used == ["replica"]
        assert session.info["walcast_token"] >= walcast.Token.of(1, 20)


def test_a_replica_that_has_not_what_was_committed_is_not_read(pair: Pair) -> None:
    with pair.session(wait_s=0.05) as session, pair.paused():
        assert titles(session) == ["Emma"]
        session.add(Book(title="Persuasion"))
        session.commit()
        for _ in range(2):
            with pytest.raises(walcast.StaleReplica):
                titles(session)
        session.use_primary()
        assert titles(session) == ["Emma", "Persuasion"]
        session.rollback()
        with pair.session(info=dict(session.info), wait_s=0.05) as other, pytest.raises(walcast.StaleReplica):
            titles(other)
    with pair.session(info=dict(session.info), wait_s=PATIENCE_S) as session:
        assert titles(session) == ["Emma", "Persuasion"]
    assert pair.used[-1] == "replica"


def test_a_commit_is_waited_for_by_one_barrier(pair: Pair) -> None:
    asked = []
    with pair.session(
        barrier=lambda: asked.append(1) or walcast.Primary(pair.db).barrier(), wait_s=PATIENCE_S
    ) as session:
        for commits in (1, 2):
            session.add(Book(title="Persuasion"))
            session.commit()
            for _ in range(3):
                assert len(titles(session)) == 1 + commits
                session.rollback()
            assert len(asked) == commits


def test_who_commits_and_reads_no_more_asks_for_no_barrier(pair: Pair) -> None:
    def barrier() -> walcast.Token:
        raise walcast.Unavailable("nobody is there")

    with pair.session(barrier=barrier) as session:
        session.add(Book(title="Persuasion"))
        session.commit()
        with pytest.raises(walcast.Unavailable, match="nobody is there"):
            titles(session)
    with closing(sqlite3.connect(pair.db)) as db:
        assert db.execute("SELECT count(*) FROM books").fetchone() == (2,)


def test_two_engines_of_one_file_wait_for_nothing(pair: Pair) -> None:
    """As on the primary's host, where both are the file that is written."""
    reading = replica_engine(pair.db)
    with RoutingSession(primary=pair.engines["primary"], replica=reading) as session, pair.paused():
        note(reading, "replica", pair.used)
        session.add(Book(title="Persuasion"))
        session.commit()
        assert titles(session) == ["Emma", "Persuasion"]
        assert pair.used == ["primary", "replica"]
        assert "walcast_token" not in session.info
    reading.dispose()


books = Book.__table__
READS = {
    "select": select(Book),
    "core select": select(books),
    "union": union_all(select(Book.id), select(Book.id)),
    "function": func.now(),
    "text": text("  select 1"),
    "text with columns": text("SELECT id FROM books").columns(Book.id),
    "rows of text": select(Book).from_statement(text("SELECT * FROM books")),
    "lambda": lambda_stmt(lambda: select(Book)),
}
WRITES = {
    "insert": insert(Book),
    "update returning": update(Book).returning(Book),
    "rows of an insert": select(Book).from_statement(insert(Book).returning(Book)),
    "delete": delete(books),
    "for update": select(Book).with_for_update(),
    "ddl": CreateTable(books),  # type: ignore[arg-type]
    "text": text("update books set title = 1"),
    "text with": text("WITH x AS (SELECT 1) DELETE FROM books"),
    "text with columns": text("DELETE FROM books RETURNING id").columns(Book.id),
    "lambda": lambda_stmt(lambda: update(Book)),
    "anything": None,
}


@pytest.mark.parametrize("name", READS)
def test_a_statement_that_only_reads_is_for_the_replica(pair: Pair, name: str) -> None:
    with pair.session() as session:
        assert session.get_bind(clause=READS[name]) is pair.engines["replica"]


@pytest.mark.parametrize("name", WRITES)
def test_a_statement_that_may_write_is_for_the_primary(pair: Pair, name: str) -> None:
    with pair.session() as session:
        assert session.get_bind(clause=WRITES[name]) is pair.engines["primary"]
        assert session.get_bind(clause=READS["select"]) is pair.engines["primary"]


def test_bulk_writes_savepoints_and_connections_go_to_the_primary(pair: Pair) -> None:
    for write in (
        lambda session: session.bulk_insert_mappings(Book, [{"title": "b"}]),
        lambda session: session.connection().execute(insert(books), [{"title": "b"}]),
        lambda session: session.execute(insert(Book), [{"title": "b"}]),
        lambda session: session.merge(Book(id=1, title="b")) and session.flush(),
    ):
        with pair.session() as session, session.begin_nested():
            write(session)
            assert "b" in titles(session)
            assert pair.used[-1] == "primary"
