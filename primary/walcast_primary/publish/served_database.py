"""A database as the replication service sees it, and what is refused in its name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from walcast import wire
from walcast.errors import Corrupt
from walcast.identity import parse_database_id
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.terms import TermStart
from walcast_primary.database import Database
from walcast_primary.publish.followers import Followers
from walcast_primary.transaction_log.transaction_log import Known, TransactionLog

HEARTBEAT_S = 3.0  # each wakes threads of gRPC that then take a second to settle
RECHECK_EVERY_S = 60.0
_FIXED = "this database is served without failover: it cannot change its role"


class Refused(Exception):
    """Ends a call with a Refusal message."""

    def __init__(
        self,
        kind: pb.RefusalKind.ValueType,
        detail: str,
        position: Position | None = None,
        *,
        primary: str = "",
        history: Sequence[TermStart] = (),
    ) -> None:
        super().__init__(detail)
        self.refusal = pb.Refusal(kind=kind, detail=detail, protocol=wire.PROTOCOL_VERSION, primary=primary)
        self.refusal.history.extend(wire.history_message(history))
        if position is not None:
            self.refusal.position.CopyFrom(wire.position_message(position, 0))


class Served:
    """A database as the service sees it; `history`: the terms that it knows of.

    `switchover` and `step_down` answer those calls, where a node can change its role.
    """

    def __init__(self, database: Database, history: Sequence[TermStart] = ()) -> None:
        self.database = database
        self.history = history
        self.followers = Followers()
        self.heartbeat_s = HEARTBEAT_S
        self.switchover: Callable[[pb.SwitchoverRequest], Awaitable[pb.SwitchoverReply]] = _no_switchover
        self.step_down: Callable[[pb.StepDownRequest], Awaitable[pb.StepDownReply]] = _no_step_down
        self.rechecked_s = -RECHECK_EVERY_S
        self._loop = asyncio.get_running_loop()
        self._grown = asyncio.Event()
        self._woken = False
        database.log.listen(self._wake_from_thread)

    @property
    def log(self) -> TransactionLog:
        return self.database.log

    def check_tenure(self) -> None:
        """Refused when nothing may be sent now: asked before each message."""
        tenure = self.database.tenure
        if not tenure.holds:
            why = tenure.ended or "this node does not hold the lease now"
            raise Refused(pb.REFUSAL_KIND_FENCED, why, primary=tenure.heir)

    def _wake_from_thread(self) -> None:
        if not self._woken:  # many entries between two turns of the loop need one wake-up
            self._woken = True
            self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Have every stream look again."""
        self._woken = False
        self._grown.set()
        self._grown = asyncio.Event()

    async def grown(self, timeout_s: float) -> bool:
        """Until the log has a new entry; False when the time is over."""
        event = self._grown
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True


def look_age_ms(served: Served) -> int:
    """For a message: how long ago capture last knew that the log has every commit."""
    return min(served.database.loop.look_age_ms, 0xFFFFFFFF)


async def _no_switchover(request: pb.SwitchoverRequest) -> pb.SwitchoverReply:
    raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, _FIXED)


async def _no_step_down(request: pb.StepDownRequest) -> pb.StepDownReply:
    raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, _FIXED)


def named(served: Served, checksum: int) -> pb.Position | None:
    """The position of a follower's state that has lost its name, as far as the log can tell."""
    try:
        found = served.log.named(checksum)
    except (Corrupt, OSError):
        return None  # a page diff does without the log
    return None if found is None else wire.position_message(found[1], found[0])


def check_known(served: Served, position: Position) -> None:
    transactions, history = served.log, served.history
    known = transactions.knows(position)
    if known is Known.OLDER:
        detail = f"the log begins at {transactions.first}, the follower is at {position}"
        raise Refused(pb.REFUSAL_KIND_LOG_MOVED_ON, detail, transactions.position, history=history)
    if known is Known.DIVERGED:
        detail = f"{position} is not on this primary's history"
        raise Refused(pb.REFUSAL_KIND_DIVERGED, detail, transactions.position, history=history)


def check_same_database(served: Served, theirs: str) -> None:
    """Refused when the follower's replica is of another database, by its id; one without an id is of none yet."""
    mine = served.database.id
    if not theirs or mine is None or theirs == mine:
        return
    try:
        parse_database_id(theirs)
    except ValueError as error:
        raise Refused(pb.REFUSAL_KIND_OTHER_DATABASE, str(error)) from error
    detail = f"the database {served.database.name!r} has the id {mine} here, and the follower's replica is of {theirs}"
    raise Refused(pb.REFUSAL_KIND_OTHER_DATABASE, detail)


def check_term(transactions: TransactionLog, term: int) -> None:
    if term > transactions.term:
        detail = f"the follower has seen term {term}, this primary is of term {transactions.term}"
        raise Refused(pb.REFUSAL_KIND_OLDER_TERM, detail, transactions.position)
