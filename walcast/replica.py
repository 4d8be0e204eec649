"""A replica as an app on the same host sees it: connections that cannot write, its position, waiting for a commit.

Nothing here talks to a server. The follower keeps the status file beside the database (`walcast.statusfile`); SQLite
does the rest. Only the standard library and what is small is imported; a `Replica` holds nothing open.

All methods may be called by many threads at once, and after a fork.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from walcast.connection import ReplicaConnection, file_at
from walcast.errors import ConfigError, Unavailable
from walcast.goals import Applied, At, Goal, Level
from walcast.position import Position, format_txid
from walcast.statedir import behind_link, state_dir
from walcast.statusfile import State, Status, read_status
from walcast.terms import TERM_TXIDS, gaps_between, read_standing
from walcast.token import StaleReplica, Token
from walcast.waiting import waiting_for


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a replica is behind its primary.

    `txids`: transactions that the primary is known to have and this replica has not applied; what the follower last
    heard, so 0 does not mean level while it is disconnected. `ms`: how old what readers see may be, in milliseconds:
    from the commit on the primary until it was visible here, while the replica is level; else the time since it was
    level; `math.inf` when it never was.
    """

    txids: int
    ms: float


class Replica:
    """The replica at `path`, kept by `walcast follower` on this host. The file need not exist yet."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        # Three slashes: what follows is a path in all cases. Bytes: names need not be UTF-8.
        self._uri = f"file://{quote(os.fsencode(self.path))}?mode=ro"

    @property
    def _database(self) -> Path:
        """What the link leads to now, where the path is one: a deployment may move it."""
        return behind_link(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def connect(self, *, timeout: float = 5.0, **kwargs: Any) -> sqlite3.Connection:
        """A new connection that cannot write; `kwargs` are those of `sqlite3.connect`, `timeout` is in seconds.

        A write raises ReadOnlyReplica, an OperationalError of sqlite3 that says where to write; with a `factory` of
        your own, sqlite3's "attempt to write a readonly database". `with` on the connection means what it means in
        sqlite3: it ends a transaction, it does not close. Works whether the follower runs or not.

        Connections are sqlite3's also in this: one belongs to the thread that opened it, none goes through a fork.
        Pool them as you would without walcast.

        `isolation_level` is None unless given: sqlite3 would begin a transaction before a write, which fails, and all
        reads after it would see that one moment. `BEGIN` begins a transaction for reads that belong together.

        Readers of a WAL database share its `-shm` file, so this user must be able to write it, or, where it is
        missing, to create it and `-wal` in the folder. In a folder that cannot be written SQLite opens the database
        only while both are there, as they are whenever the follower runs.

        ReplicaReplaced, an OperationalError of sqlite3, when another file has taken the replica's place since.

        Unavailable when there is no database yet, or it cannot be opened.
        """
        # By stat, never by opening: closing a descriptor of the file would drop SQLite's locks in this process.
        if not os.path.isfile(self.path):  # noqa: PTH113 - half the time of Path's, for every page of an app
            what = "is not a file" if self.path.exists() else "no such file; has a follower made it yet?"
            raise Unavailable(f"{self.path}: {what}")
        kwargs.setdefault("isolation_level", None)
        kwargs.setdefault("factory", ReplicaConnection)
        before = file_at(self.path)
        try:
            connection: sqlite3.Connection = sqlite3.connect(self._uri, timeout=timeout, uri=True, **kwargs)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{self.path}: {error}") from error
        try:
            # Refuses CREATE TEMP TABLE and the like, too, which mode=ro alone would let pass.
            connection.execute("PRAGMA query_only = ON")
            if isinstance(connection, ReplicaConnection):
                connection.opened(self._database, before)
        except BaseException:
            connection.close()
            raise
        return connection

    def position(self) -> Position:
        """What this host has applied. Unavailable when no follower ever ran here."""
        return read_status(self._database).position

    def term(self) -> int:
        """The term of the newest transaction applied; promotions raise it."""
        return read_status(self._database).term

    def state(self) -> str:
        """What the follower is doing, one of `walcast.statusfile.State`; "stopped" also when it died without a word."""
        return _state(read_status(self._database))

    def lag(self) -> Lag:
        """How far behind this replica is, as far as this host knows."""
        status = read_status(self._database)
        if _is_primary(status):
            return Lag(0, 0.0)
        ms = status.lag_ms(time.time_ns()) if status.level_ns else math.inf
        return Lag(txids_behind(self._database, status), ms)

    def wait_for(self, token: str | Token | Position, timeout: float = 2.0) -> None:
        """Return once this replica has applied `token`: at once when it has, else within a millisecond of it.

        The token is what `Primary.barrier` gave, or its text, or a position (or its text; it has no term, so only its
        TXID counts). A connection sees it from its next read transaction on. On the primary itself every token has been
        applied. StaleReplica when it was not applied within `timeout` seconds, also when that is because the follower
        is stopped, diverged or was never here; ValueError when it is no token.

        Blocks the thread, or under gevent the greenlet, without using the processor; a thousand may wait at once.
        """
        goal = _goal(token)
        if not self._has(goal) and not waiting_for(self._database).wait(goal, time.monotonic() + timeout):
            raise self._not_applied(goal, timeout)

    async def wait_for_async(self, token: str | Token | Position, timeout: float = 2.0) -> None:
        """`wait_for` for coroutines, on asyncio's event loop or uvloop. Uses no thread; may be cancelled."""
        goal = _goal(token)
        if not self._has(goal) and not await waiting_for(self._database).wait_async(goal, time.monotonic() + timeout):
            raise self._not_applied(goal, timeout)

    def wait_caught_up(self, max_lag_ms: float = 1000.0, timeout: float = 5.0) -> None:
        """Return once the follower streams from its primary and `lag().ms` is at most `max_lag_ms`: for an app that
        starts, or a check whether this host may have requests. On the primary itself at once. StaleReplica when it did
        not come so far within `timeout` seconds.

        A replica that has just caught up while nobody writes hears from its primary within three seconds that what it
        has is new; hence the default."""
        goal = Level(max_lag_ms)
        if not self._has(goal) and not waiting_for(self._database).wait(goal, time.monotonic() + timeout):
            raise self._not_caught_up(goal, timeout)

    async def wait_caught_up_async(self, max_lag_ms: float = 1000.0, timeout: float = 5.0) -> None:
        """`wait_caught_up` for coroutines."""
        goal = Level(max_lag_ms)
        if not self._has(goal) and not await waiting_for(self._database).wait_async(goal, time.monotonic() + timeout):
            raise self._not_caught_up(goal, timeout)

    def _has(self, goal: Goal) -> bool:
        try:
            return goal.is_reached(read_status(self._database), time.time_ns())
        except Unavailable:
            return False

    def _not_applied(self, goal: Applied | At, timeout: float) -> StaleReplica:
        token = Token.of(goal.term, goal.txid) if isinstance(goal, Applied) else goal.position
        shown = f"TXID {format_txid(token.txid)}" if isinstance(token, Position) and not token.checksum else token
        return self._stale(f"has not applied {shown} within {timeout:g} s", token, timeout)

    def _not_caught_up(self, goal: Level, timeout: float) -> StaleReplica:
        return self._stale(f"did not come within {goal.max_lag_ms:g} ms of its primary in {timeout:g} s", None, timeout)

    def _stale(self, what: str, token: Token | Position | None, timeout: float) -> StaleReplica:
        position, term, state = Position(), 0, "missing"
        try:
            status = read_status(self._database)
            position, term, state = status.position, status.term, _state(status)
            where = f"it is at {position} of term {term}, its follower is {state}"
        except Unavailable as error:
            where = str(error)
        return StaleReplica(
            f"{self.path}: {what}; {where}", token=token, position=position, term=term, state=state, timeout=timeout
        )


def txids_behind(database: Path, status: Status) -> int:
    """How many transactions that the primary is known to have had the replica has not."""
    behind = status.primary_txid - status.position.txid
    if behind >= TERM_TXIDS:
        # A promotion may lie between, with TXIDs that no transaction had. The follower wrote down which, before it
        # took the first transaction of the new term.
        try:
            standing = read_standing(state_dir(database))
        except (OSError, ConfigError):
            standing = None
        if standing is not None:
            behind -= gaps_between(standing.history, status.position.txid, status.primary_txid)
    return max(0, behind)


def _goal(token: str | Token | Position) -> Applied | At:
    if isinstance(token, Position):
        return At(token)
    if "/" in token:
        return At(Position.parse(token))
    return Applied.of(token if isinstance(token, Token) else Token(token))


def _is_primary(status: Status) -> bool:
    return status.state is State.PRIMARY and status.is_live(time.time_ns())


def _state(status: Status) -> str:
    return str(status.state if status.is_live(time.time_ns()) else State.STOPPED)
