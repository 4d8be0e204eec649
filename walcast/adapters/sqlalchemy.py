"""SQLAlchemy 2: an engine for a replica, and a session that reads there and writes at the primary.

    replica = replica_engine("/srv/app.db")
    with replica.connect() as connection:                              # one transaction is one moment
        rows = connection.execute(select(books)).all()
    with replica.connect().execution_options(walcast_token=token) as connection:
        ...                                                            # a moment that has what the token covers

    Session = sessionmaker(class_=RoutingSession, primary=create_engine("sqlite:////srv/app.db"), replica=replica)

Synchronous, as sqlite3 is. Under asyncio, `await Replica.wait_for_async(token)` first, and then call this in a thread.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, Pool, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import FromStatement, Session, SessionTransaction
from sqlalchemy.sql.elements import ClauseElement, TextClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.lambdas import LambdaElement
from sqlalchemy.sql.selectable import SelectBase, TextualSelect

from walcast.connection import ReplicaConnection, ReplicaReplaced
from walcast.errors import ConfigError
from walcast.primary import Primary
from walcast.replica import Replica
from walcast.token import Token

TOKEN = "walcast_token"
WAIT_S = "walcast_wait_s"
DEFAULT_WAIT_S = 1.0
_REPLICA = "walcast_replica"
AUTOCOMMIT = "AUTOCOMMIT"


# An engine


def replica_engine(path: str | os.PathLike[str], **create_engine_kwargs: Any) -> Engine:
    """An engine for the replica at `path`, whose connections cannot write: as `Replica.connect` makes them.

    A transaction begins with BEGIN, so that all its statements see one moment, from the first that reads; under the
    isolation level AUTOCOMMIT each statement sees the newest. A write raises sqlalchemy.exc.OperationalError, which
    says where to write; its `orig` is `walcast.ReadOnlyReplica`. `Unavailable` while there is no database yet.

    Execution options, of a connection or of `engine.execution_options(…)`: `walcast_token`, what the replica must
    have applied before a transaction begins, and `walcast_wait_s`, for how many seconds to wait for that at most (1).
    `StaleReplica` when it has not; its connection is closed then.

    A connection of the pool is opened anew where another file has taken the replica's place.

    `create_engine_kwargs` are those of `create_engine`, with `connect_args` those of `sqlite3.connect`. Forked
    processes open connections of their own.
    """
    replica = Replica(path)
    options = {_REPLICA: replica} | create_engine_kwargs.pop("execution_options", {})
    default_level = create_engine_kwargs.get("isolation_level")
    # With a database in the URL SQLAlchemy takes the pool for files, and check_same_thread=False.
    url = URL.create("sqlite", database=str(replica.path))
    engine = create_engine(url, execution_options=options, **create_engine_kwargs)

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _arguments: Any, keywords: dict[str, Any]) -> sqlite3.Connection:
        return replica.connect(**keywords)

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        if isinstance(connection, ReplicaConnection) and connection.is_replaced:
            raise DisconnectionError(f"{replica.path} was replaced by another file")  # the pool opens a new one

    @event.listens_for(engine, "handle_error")
    def handle_error(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, ReplicaReplaced):
            context.is_disconnect = True

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        told = connection.get_execution_options()
        try:
            if told.get(TOKEN) is not None:
                replica.wait_for(told[TOKEN], told.get(WAIT_S, DEFAULT_WAIT_S))
            if told.get("isolation_level", default_level) != AUTOCOMMIT:
                connection.exec_driver_sql("BEGIN")
        except BaseException:
            # SQLAlchemy would take it for one that has begun, and its next statement would read without either.
            connection.close()
            raise

    _engines.add(engine)
    return engine


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_parents: list[Pool] = []


def _forked() -> None:
    """A connection must not be used, nor even closed, by a child of the process that opened it."""
    for engine in list(_engines):
        _parents.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forked)


# A session


class RoutingSession(Session):
    """Reads at `replica` until the first write; from that on all is done at `primary`, until the transaction ends.

        Session = sessionmaker(class_=RoutingSession, primary=engine, replica=replica_engine(path), wait_s=1.0)

    A write is a flush, INSERT, UPDATE, DELETE, DDL, `with_for_update()`, text that does not begin with SELECT or
    VALUES, and `session.connection()`. `use_primary()` goes there before that.

    After a transaction that wrote, the next one reads at the replica when that has it: `barrier` is asked for a token,
    which is kept as `session.info["walcast_token"]`. One that is put there, as by `Session(info={"walcast_token": …})`,
    is waited for, too. `StaleReplica` when it was not applied within `wait_s` seconds.

    The two engines may be of one file: on the primary's host that is what both are. Then nothing is waited for after
    a write. `barrier` is by default that of the process that serves the primary's file.
    """

    def __init__(
        self,
        *args: Any,
        primary: Engine,
        replica: Engine,
        wait_s: float = DEFAULT_WAIT_S,
        barrier: Callable[[], Token] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._primary = primary
        self._replica = replica
        self._wait_s = wait_s
        self._barrier = barrier
        self._is_writing = False
        self._has_waited = False
        self._has_written = False

    def use_primary(self) -> None:
        """Do all that is left of this transaction at the primary."""
        self._is_writing = True

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **kwargs: Any
    ) -> Engine | Connection:
        """The engine for a statement; called by SQLAlchemy for each."""
        if bind is not None:
            return cast(Engine | Connection, bind)
        if not _only_reads(clause):
            self._is_writing = True
        if self._is_writing:
            return self._primary
        if not self._has_waited:
            self._wait()
            self._has_waited = True
        return self._replica

    def _wait(self) -> None:
        """Until the replica has what this session wrote or was told of."""
        replica: Replica = self._replica.get_execution_options()[_REPLICA]
        if self._has_written:
            # Asked for now and not at the commit: who writes and goes need not wait, and a barrier that fails must not
            # look like a commit that failed.
            ask = self._barrier or _barrier_of(self._primary, replica)
            if ask is not None:
                self.info[TOKEN] = ask()
            self._has_written = False
        if self.info.get(TOKEN) is not None:
            replica.wait_for(self.info[TOKEN], self._wait_s)


@event.listens_for(RoutingSession, "after_transaction_end")
def _ended(session: RoutingSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session._has_written |= session._is_writing
        session._is_writing = session._has_waited = False


def _barrier_of(primary: Engine, replica: Replica) -> Callable[[], Token] | None:
    """How to ask for a token that covers what was written there; None when both are one file."""
    path = primary.url.database
    if not path or not Path(path).is_file():
        raise ConfigError(f"RoutingSession: {primary.url} names no file on this host; give it `barrier`")
    if Path(path).samefile(replica.path):
        return None
    return Primary(Path(path)).barrier


def _only_reads(clause: ClauseElement | None) -> bool:
    """Surely? Text is believed only when its first word says so; no clause is a flush, or a connection for anything."""
    if isinstance(clause, LambdaElement):
        clause = clause._resolved
    if isinstance(clause, FromStatement | TextualSelect):
        clause = clause.element
    if isinstance(clause, TextClause):
        return clause.text.lstrip(" \t\r\n(")[:6].upper() in ("SELECT", "VALUES")
    if isinstance(clause, FunctionElement):
        return True
    return isinstance(clause, SelectBase) and getattr(clause, "_for_update_arg", None) is None
