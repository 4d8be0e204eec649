"""A replica as an app on the same host sees it: connections that cannot write, its position, waiting for a commit.

Nothing here talks to a server. The follower keeps the status file beside the database (`walcast.statusfile`); SQLite
does the rest. Only the standard library and what is small is imported; a `Replica` holds nothing open until somebody
waits.

All methods may be called by many threads at once, and after a fork.
"""

from __future__ import annotations

import math
import os
import select
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from walcast.errors import Unavailable
from walcast.position import Position
from walcast.statusfile import State, Status, read_status, status_path
from walcast.token import StaleReplica, Token

if TYPE_CHECKING:
    from inotify_simple import INotify

IN_MODIFY = 0x2  # inotify(7)
LOOK_S = 0.1  # the file may be replaced while it is watched
POLL_FIRST_S = 0.001
POLL_MOST_S = 0.005


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
        self._watches: dict[int, _Watch] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def connect(self, *, timeout: float = 5.0, **kwargs: Any) -> sqlite3.Connection:
        """A new connection that cannot write; `kwargs` are those of `sqlite3.connect`, `timeout` is in seconds.

        A write raises sqlite3's own OperationalError, "attempt to write a readonly database". `with` on the connection
        means what it means in sqlite3: it ends a transaction, it does not close. Works whether the follower runs or
        not.

        `isolation_level` is None unless given: sqlite3 would begin a transaction before a write, which fails, and all
        reads after it would see that one moment. `BEGIN` begins a transaction for reads that belong together.

        Readers of a WAL database share its `-shm` file, so this user must be able to write it, or, where it is
        missing, to create it and `-wal` in the folder. In a folder that cannot be written SQLite opens the database
        only while both are there, as they are whenever the follower runs.

        Unavailable when there is no database yet, or it cannot be opened.
        """
        # By stat, never by opening: closing a descriptor of the file would drop SQLite's locks in this process.
        if not self.path.is_file():
            what = "is not a file" if self.path.exists() else "no such file; has a follower made it yet?"
            raise Unavailable(f"{self.path}: {what}")
        # Three slashes: what follows is a path in all cases. Bytes: names need not be UTF-8.
        uri = f"file://{quote(os.fsencode(self.path))}?mode=ro"
        kwargs.setdefault("isolation_level", None)
        try:
            connection: sqlite3.Connection = sqlite3.connect(uri, timeout=timeout, uri=True, **kwargs)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{self.path}: {error}") from error
        try:
            # Refuses CREATE TEMP TABLE and the like, too, which mode=ro alone would let pass.
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def position(self) -> Position:
        """What this host has applied. Unavailable when no follower ever ran here."""
        return read_status(self.path).position

    def term(self) -> int:
        """The term of the newest transaction applied; promotions raise it."""
        return read_status(self.path).term

    def state(self) -> str:
        """What the follower is doing, one of `walcast.statusfile.State`; "stopped" also when it died without a word."""
        return _state(read_status(self.path))

    def lag(self) -> Lag:
        """How far behind this replica is, as far as this host knows."""
        status = read_status(self.path)
        ms = status.lag_ms(time.time_ns()) if status.level_ns else math.inf
        return Lag(max(0, status.primary_txid - status.position.txid), ms)

    def wait_for(self, token: str | Token | Position, timeout: float = 2.0) -> None:
        """Return once this replica has applied `token`: at once when it has, else within a millisecond or two of it.

        The token is what `Primary.barrier` gave, or its text, or a position (or its text; it has no term, so only its
        TXID counts). A connection sees it from its next read transaction on. StaleReplica when it was not applied
        within `timeout` seconds, also when that is because the follower is stopped, diverged or was never here;
        ValueError when it is no token. Blocks the thread: in asyncio, call it with `asyncio.to_thread`.
        """
        wanted = _parse(token)
        deadline = time.monotonic() + timeout
        if self._has(wanted):
            return
        watch = self._watch()
        pause_s = POLL_FIRST_S
        while True:
            watching = watch.look_at(status_path(self.path))
            seen = watch.changes
            if self._has(wanted):
                return
            left_s = deadline - time.monotonic()
            if not left_s > 0:  # also when it is not a number
                raise self._stale(wanted, timeout)
            if watching:
                watch.wait(seen, min(left_s, LOOK_S))
            else:
                time.sleep(min(left_s, pause_s))
                pause_s = min(pause_s * 1.5, POLL_MOST_S)

    def _has(self, wanted: Token | Position) -> bool:
        try:
            status = read_status(self.path)
        except Unavailable:
            return False
        if status.state is State.PRIMARY and status.is_live(time.time_ns()):
            return isinstance(wanted, Position) or wanted.term <= status.term
        if isinstance(wanted, Position):
            # The same TXID with another checksum is another history's; a checksum of 0 is not known.
            here = status.position
            return here.txid > wanted.txid or (here.txid == wanted.txid and wanted.checksum in (0, here.checksum))
        return (status.term, status.position.txid) >= (wanted.term, wanted.txid)

    def _stale(self, wanted: Token | Position, timeout: float) -> StaleReplica:
        position, term, state = Position(), 0, "missing"
        try:
            status = read_status(self.path)
            position, term, state = status.position, status.term, _state(status)
            where = f"it is at {position} of term {term}, its follower is {state}"
        except Unavailable as error:
            where = str(error)
        return StaleReplica(
            f"{self.path}: has not applied {wanted} within {timeout:g} s; {where}",
            token=wanted,
            position=position,
            term=term,
            state=state,
            timeout=timeout,
        )

    def _watch(self) -> _Watch:
        # By process: a child must not take events from its parent's inotify, nor a lock that was held at the fork.
        pid = os.getpid()
        watch = self._watches.get(pid)
        if watch is None:
            watch = self._watches.setdefault(pid, _Watch())  # of two threads, the later one's is dropped
        return watch


def _parse(token: str | Token | Position) -> Token | Position:
    if isinstance(token, Token | Position):
        return token
    return Position.parse(token) if "/" in token else Token(token)


def _state(status: Status) -> str:
    return str(status.state if status.is_live(time.time_ns()) else State.STOPPED)


class _Watch:
    """Changes of the status file, for all the threads of a process that wait on one replica.

    One inotify instance, opened once: users have few of them, and closing one takes the kernel some 10 ms. One thread
    at a time, the leader, listens to it; it wakes the others by `changes`. Where there is no inotify, everybody
    polls.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._condition = threading.Condition()
        self._led = False
        self._inotify: INotify | None = None
        self._tried = False

    def __del__(self) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def look_at(self, path: Path) -> bool:
        """Watch the file that is there now, which may have been made anew since the last time; False when that cannot
        be.
        """
        with self._condition:
            if not self._tried:
                self._tried = True
                self._inotify = _open_inotify()
            if self._inotify is None:
                return False
            try:
                self._inotify.add_watch(path, IN_MODIFY)
            except OSError:
                return False
            return True

    def wait(self, seen: int, timeout_s: float) -> None:
        """Until there was a change since `changes` was `seen`, at most for `timeout_s`; may return early."""
        assert self._inotify is not None
        with self._condition:
            if self.changes != seen:
                return
            if self._led:
                self._condition.wait(timeout_s)
                return
            self._led = True
        try:
            poll = select.poll()
            poll.register(self._inotify.fileno(), select.POLLIN)
            if poll.poll(timeout_s * 1000):
                self._inotify.read(timeout=0)
        finally:
            with self._condition:
                self._led = False
                self.changes += 1
                self._condition.notify_all()


def _open_inotify() -> INotify | None:
    try:
        from inotify_simple import INotify

        return INotify(nonblocking=True)
    except (ImportError, OSError):
        return None
