"""Calls that last, and the rights that they began with: a call ends once whoever made it does not have them any more.

A token or an authority may be withdrawn, and a certificate ends, while streams and copies are open. Those who have made
them are asked for again every few seconds. What has lost its right says so itself as soon as it can, and is cancelled
when it cannot, as a stream whose receiver takes nothing.

A process of our own user keeps its right for as long as it keeps its connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from walcast import audit
from walcast.access import Identity, Kind, Role
from walcast.rpc import replication_pb2 as pb
from walcast_primary.publish.gate import Context, Gate
from walcast_primary.publish.served_database import Refused

log = logging.getLogger("walcast.primary")

LOOK_S = 3.0
GRACE_S = 5.0  # to end by itself


@dataclass(eq=False, slots=True)
class Right:
    """That of one call. `lost` once whoever made it does not have it any more."""

    context: Context
    identity: Identity
    role: Role
    database: str
    task: asyncio.Task[object] | None
    on_loss: Callable[[], object] = lambda: None
    lost: bool = field(default=False, init=False)

    def check(self) -> None:
        """Refused when it is lost."""
        if self.lost:
            detail = f"{self.identity} has not the role {self.role!s} at {self.database!r} any more"
            raise Refused(pb.REFUSAL_KIND_STOPPING, detail)


class Rights:
    """Of the calls of one server. Used in the event loop only."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._open: set[Right] = set()
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def of_call(
        self,
        context: Context,
        identity: Identity,
        role: Role,
        database: str,
        method: str,
        on_loss: Callable[[], object] = lambda: None,
    ) -> Iterator[Right]:
        """That of the call that the current task answers, for as long as the block lasts. `on_loss` is called when it
        is lost."""
        right = Right(context, identity, role, database, asyncio.current_task(), on_loss)
        if identity.kind is Kind.USER:
            yield right
            return
        self._open.add(right)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield right
        finally:
            self._open.discard(right)
            if not self._open and self._looking is not None:
                self._looking.cancel()
                self._looking = None
            if right.lost:
                audit.record_denied(str(identity), context.peer(), method, database, str(role))

    def look(self) -> None:
        """At each of them now."""
        for right in list(self._open):
            if not right.lost and not self._has(right):
                right.lost = True
                right.on_loss()
                asyncio.get_running_loop().call_later(GRACE_S, self._cancel, right)

    def _has(self, right: Right) -> bool:
        try:
            if self._gate.identify(right.context) != right.identity:
                return False
            return right.role in self._gate.roles(right.identity, right.database)
        except Exception:
            log.exception("cannot tell who has made a call that is open", extra={"identity": str(right.identity)})
            return False

    def _cancel(self, right: Right) -> None:
        if right in self._open and right.task is not None:
            right.task.cancel()

    async def _look(self) -> None:
        while self._open:
            await asyncio.sleep(LOOK_S)
            self.look()
