"""One database of a replica set in this process: the primary's or a follower's, and from one to the other.

What it is to be is decided in `decisions`, or, in a set without a lease, by whoever asks for it; here that is carried
out, one change after the other. The database stays open and locked while it changes hands (`walcast.held`), and
`app.db-walcast/role` says what the node is before anything depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from walcast import wire
from walcast.discarded import list_discarded
from walcast.errors import ConfigError, DiskFull, Exhausted, Unavailable, WalcastError
from walcast.facts import primary_facts
from walcast.identity import id_of_database
from walcast.lasting import RUN_OUT, is_passing, outlast
from walcast.position import Position
from walcast.rarely import Rarely
from walcast.remedies import FailureKind
from walcast.rpc import replication_pb2 as pb
from walcast.savedsums import forget_restored
from walcast.shortage import shortage
from walcast.statedir import state_dir
from walcast.store import Store
from walcast.terms import FOLLOWER, PRIMARY, Standing, TermStart, read_standing
from walcast_follower.apply.page_owners import Written
from walcast_follower.bootstrap.overwrite_check import check_replica
from walcast_follower.following import Following
from walcast_follower.subscribe.primary_client import Client
from walcast_follower.subscribe.primary_locator import Whereabouts
from walcast_node.commands.status_facts import follower_status
from walcast_node.config.settings import MemberSettings
from walcast_node.failover import announcer, role_changes, switchover
from walcast_node.failover import state as d
from walcast_node.failover.keeper import Keeper
from walcast_node.failover.leasing import Leasing
from walcast_node.failover.member_status import Shown, database_status, fenced_words, lease_status, stale_words
from walcast_node.failover.reachable import unreachable
from walcast_node.failover.remembered_role import Remembered, remembered, remind
from walcast_node.process.first_boot import is_awaited, opened_when_free, restore_when_reachable, wait_for_database
from walcast_node.process.local_service import Facts, LocalService, answer_barrier
from walcast_node.process.serving import not_served
from walcast_primary.capture.opening import DatabaseInUse
from walcast_primary.publish.served_database import Refused
from walcast_primary.recovery.damage import Damaged
from walcast_primary.tenure import Tenure, now_s

if TYPE_CHECKING:
    from walcast_node.process.host import Host
    from walcast_node.process.serving import Serving

log = logging.getLogger("walcast.failover")

T = TypeVar("T")

CLOSE_S = 5.0
BEGIN_AGAIN_S = 1.0
BEGIN_MOST_S = 30.0


class Member:
    """Runs from `start` to `close`. `settled` is set once it has a role and others can know of it."""

    def __init__(self, host: Host, settings: MemberSettings) -> None:
        self.host = host
        self.settings = settings
        self.name = settings.database.name
        self.path = settings.database.path
        self.settled = asyncio.Event()
        self.awaits_app = asyncio.Event()  # set when the app is to make the database first
        self.restore_error: str | None = None  # why it cannot be restored now
        self.waits_since_ms = 0
        self.tenure = Tenure()
        self.standing = Standing(settings.role, 0)
        self.serving: Serving | None = None
        self.following: Following | None = None
        self.leasing = Leasing(self)
        self.shown = Shown(self)
        self.changing = asyncio.Lock()
        self.handing: asyncio.Future[bool] | None = None
        self.archiving = False
        self.handed_over: tuple[Facts, float] = ({}, -math.inf)  # what a barrier said last here, and until when it does
        self.written: Written | None = None
        self.report: Facts | None = None
        self._promotion: asyncio.Future[Facts] | None = None
        self._promotion_after = 0
        self._with_lease = False
        self._new = False
        self._error: WalcastError | None = None
        self._rarely = Rarely(log)
        self._remembered: Remembered | None = None
        self.id = ""
        self._local: LocalService | None = None
        self._actions: asyncio.Queue[d.Action] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changes: set[asyncio.Task[Any]] = set()
        self._follower_task: asyncio.Task[None] | None = None
        self._on_failure: Callable[[WalcastError], object] = lambda error: None

    # Its life

    def start(self, on_failure: Callable[[WalcastError], object]) -> None:
        """Find the role, in the background; `on_failure` when it cannot be kept."""
        self._on_failure = on_failure
        self._spawned(self._run())

    def spawn(self, work: Callable[[], Awaitable[object]]) -> asyncio.Task[Any]:
        """Work that ends with the member, begun again when something runs out in it; what else it raises is the
        member's failure."""
        name = getattr(work, "__qualname__", "") or "work"
        return self._spawned(outlast(work, state_dir(self.path), name))

    def _spawned(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.debug("ended", exc_info=error)
            known = error if isinstance(error, WalcastError) else Unavailable(f"{type(error).__name__}: {error}")
            self.failed(known)

    def failed(self, error: WalcastError) -> None:
        """It cannot go on."""
        self._error = self._error or error
        self._on_failure(error)

    async def _see_through(self, change: Coroutine[Any, Any, T]) -> T:
        """A change of role that has begun is carried to its end, also when whoever asked for it goes away: half way
        this node would be nothing. What goes wrong in it, but for a refusal, is the member's failure."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changed)
        return await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Refused):
            return
        if isinstance(error, RUN_OUT) and not self.tenure.ended and is_passing(error, state_dir(self.path), "role"):
            return  # nothing was given away yet, and whoever asked is told
        self._ended(task)

    async def close(self) -> None:
        """Let go of the database. The lease is not given up: whoever starts again soon is still the primary."""
        if self._changes:
            await asyncio.wait(list(self._changes), timeout=CLOSE_S)
        for task in [*self._tasks, *self._changes]:
            if task is not self._follower_task:
                task.cancel()
        if self._local is not None:
            await self._local.stop()
        if self._follower_task is not None:
            self._follower_task.cancel()
            await asyncio.wait([self._follower_task])
        if self.serving is not None:
            self.shown.stopped()
            self.host.forget(self.name)
            try:
                await self.serving.close(self.host.inodes, patience_s=1.0)
            except WalcastError as error:
                log.error("could not be let go", extra={"database": self.name, "error": str(error)})  # noqa: TRY400
        self.leasing.close()
        never_was = self.settings.role == PRIMARY and not self.settled.is_set()
        if self._new and isinstance(self._error, ConfigError) and (never_was or not self.path.exists()):
            await asyncio.to_thread(role_changes.forget_state, self.path)

    async def _run(self) -> None:
        settings = self.settings
        folder = state_dir(self.path)
        standing = read_standing(folder)
        role = standing.role if standing else settings.role
        if role == FOLLOWER and not settings.replace:
            check_replica(self.path)
        self.standing = standing or Standing(role, 0, history=())
        self._remembered = remembered(settings)
        if self._remembered is not None:
            self.spawn(partial(remind, self._remembered, lambda: self.serving is None))
        self._new = not folder.exists()
        if role == PRIMARY and is_awaited(settings.database):
            if not await restore_when_reachable(settings.database, lambda: self.host.stopping, self._say_restore):
                if self.host.stopping:
                    return
                self.waits_since_ms = int(time.time() * 1000)
                self.awaits_app.set()
                self.host.refuse(self.name, not_served(self.name, "its app has not made it yet"))
                if not await wait_for_database(settings.database, lambda: self.host.stopping):
                    return
            await opened_when_free(lambda: self._begin_with_app(role), lambda: self.host.stopping)
        else:
            await self._have_role(role)
        await outlast(self._listen, folder, "local socket")
        while True:
            change = partial(self._change, await self._actions.get())
            await outlast(lambda change=change: self._see_through(change()), folder, "role")  # type: ignore[misc]

    def _say_restore(self, why: str | None) -> None:
        self.restore_error = why

    async def _change(self, action: d.Action) -> None:
        """What ran out on the way does not end it: the action is begun again, which finds what of it was done."""
        async with self.changing:
            await outlast(partial(self._carry_out, action), state_dir(self.path), type(action).__name__)

    async def _begin_with_app(self, role: str) -> None:
        """As `_have_role`; DatabaseInUse leaves nothing open."""
        try:
            await self._have_role(role)
        except DatabaseInUse:
            self.leasing.close()
            raise

    async def _have_role(self, role: str) -> None:
        """Find the role. While the disk is full, or descriptors or threads are exhausted, wait and try again, as a node
        does that is running already."""
        wait_s = BEGIN_AGAIN_S
        while True:
            try:
                await self._find_role(role)
            except (DiskFull, Exhausted, OSError, RuntimeError, MemoryError) as error:
                known = error if isinstance(error, WalcastError) else shortage(error, state_dir(self.path))
                if known is None:
                    raise
            else:
                return
            facts = {"database": self.name, "error": str(known)}
            self._rarely.log(logging.ERROR, "cannot begin, trying again", "begin", facts)
            if not self._is_open:
                self.leasing.close()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, BEGIN_MOST_S)

    async def _find_role(self, role: str) -> None:
        folder = state_dir(self.path)
        if self.settings.auto and self.settings.eligible and self.unreachable:
            raise ConfigError(self.unreachable)
        self.id = self.settings.follower_id or self.host.credentials.node_id or role_changes.persistent_id(self.path)
        if not self._is_open:  # else it is begun again where something ran out
            self._with_lease = await self.leasing.find()
        with_lease = self._with_lease
        if role == PRIMARY and self.following is None:
            if with_lease:
                self.tenure.set(-math.inf, -math.inf)
            try:
                self.serving = self.serving or await role_changes.open_primary(self)
            except Damaged as error:
                if not with_lease:
                    raise
                # Another node may have the last good state, and the lease by now: the pages that differ mend this one.
                log.error("cannot be the primary; following", extra={"database": self.name, "error": str(error)})  # noqa: TRY400
                role_changes.follow(self, self.settings.primaries)
                self.leasing.keep(False)
                return
            if not with_lease:
                await role_changes.on_air(self)
                if self.standing.history:  # nobody else would tell one that was away when this node was promoted
                    term, name = self.serving.served.log.term, self.database_name
                    before = [wire.Address.parse(self.standing.primary)] if self.standing.primary else []
                    self.spawn(partial(announcer.tell, self, [*self.settings.primaries, *before], term, name))
                return
            role_changes.fence(self)
        elif self.following is None:
            await asyncio.to_thread(role_changes.finish_log, self.path)
            forget_restored(folder)  # where it stands is in the journal from now on
            role_changes.follow(self, self.settings.primaries)
        if with_lease:
            self.leasing.keep(self.serving is not None)

    async def _listen(self) -> None:
        answers = {
            "status": self._answer_status,
            "promote": self._answer_promote,
            "archived": self._answer_archived,
            "barrier": self._answer_barrier,
        }
        self._local = LocalService(self.path, answers, lambda: self.serving.database if self.serving else None)
        await self._local.start()
        self.spawn(self.shown.run)

    @property
    def _is_open(self) -> bool:
        """Has it a database, as the primary or as a follower?"""
        return self.serving is not None or self.following is not None

    # What was decided

    def act(self, action: d.Action) -> None:
        """Have it carried out, after what is under way; whoever waits for a hand-over is told at once."""
        if isinstance(action, d.HandedOver | d.NotHandedOver):
            if self.handing is not None and not self.handing.done():
                self.handing.set_result(isinstance(action, d.HandedOver))
            elif isinstance(action, d.NotHandedOver):
                self._actions.put_nowait(d.Resume())  # nobody waits any longer, and writers are held still
        else:
            self._actions.put_nowait(action)

    def expect_promotion(self) -> asyncio.Future[Facts]:
        """What comes of this node's promotion: what is known to be missing; Unavailable when another one was faster."""
        if self._promotion is None or self._promotion.done():
            self._promotion = asyncio.get_running_loop().create_future()
            lease = self.keeper.state.lease if self.keeper is not None else None
            self._promotion_after = lease.term if lease is not None else 0
            self._promotion.add_done_callback(lambda future: future.cancelled() or future.exception())
        return self._promotion

    def promoted(self, facts: Facts) -> None:
        """This node is the primary now."""
        if self._promotion is not None and not self._promotion.done():
            self._promotion.set_result(facts)

    def not_promoted(self, why: str, term: int) -> None:
        """Another one is the primary of `term`; the one that was it when this was asked for does not count."""
        if self._promotion is not None and not self._promotion.done() and term > self._promotion_after:
            self._promotion.set_exception(Unavailable(why))

    async def _carry_out(self, action: d.Action) -> None:
        match action:
            case d.Promote(term):
                await role_changes.promote(self, term)
            case d.Fence():
                role_changes.fence(self)
            case d.Resume():
                await role_changes.resume(self)
            case d.Follow(lease):
                if lease.holder != self.id:
                    await role_changes.go_to(self, lease)

    # As the owner of a follower

    def streaming(self, primary: str, term: int, history: Sequence[TermStart]) -> None:
        standing = Standing(FOLLOWER, term, primary, tuple(history), self.keeper is not None)
        if standing != self.standing:
            role_changes.stand(self, standing)
        self.host.refuse(self.name, role_changes.refusal(self, primary))
        self.settled.set()
        self.leasing.feed()
        role_changes.forget_log(self)

    def lost(self, error: Exception) -> None:
        self.leasing.feed()

    def keep(self, fork: Position) -> bool:
        return role_changes.keep_discarded(self, fork)

    async def take_over(self, offer: pb.HandOver) -> pb.HandOverReply:
        return await switchover.take_over(self, offer)

    # What it is made of

    @property
    def address(self) -> wire.Address:
        """Where others reach this node."""
        return self.settings.advertise or self.host.listening

    @property
    def unreachable(self) -> str | None:
        """Why others cannot come to where this node would say that it is."""
        return unreachable(self.settings, self.host.listening, self.path)

    @property
    def database_id(self) -> str:
        """Of the database that this node has; "" while there is none, or nobody knows which it is."""
        if self.serving is not None:
            return self.serving.database.id or ""
        if self.following is not None:
            identity = self.following.identity
            return "" if identity.replace else identity.asked  # what it is to become is not known yet
        return id_of_database(self.path) or ""

    @property
    def is_primary(self) -> bool:
        """Is the node to be the primary, as far as it decides that itself?"""
        return self.standing.role == PRIMARY

    @property
    def store(self) -> Store | None:
        """The archive, to read from."""
        return self.leasing.archive

    @property
    def keeper(self) -> Keeper | None:
        """Where the lease is kept; None in a set without one."""
        return self.leasing.keeper

    def client(self, address: wire.Address) -> Client:
        """For the primary at `address`."""
        return Client(
            address,
            self.host.credentials,
            database=self.name,
            follower_id=self.id,
            guess=self.settings.guess,
            address=str(self.address) if self.settings.eligible and not self.unreachable else "",
            candidate=self.settings.eligible and self.settings.auto,
        )

    @property
    def database_name(self) -> str:
        """What the primary calls it; "" when nobody said, and it may be the only one there."""
        return "" if self.settings.guess else self.name

    def channel(self, address: wire.Address) -> grpc.Channel:
        """To another node, for a call or two."""
        return wire.open_channel(address, self.host.credentials)

    def new_tenure(self) -> None:
        """The one before is over for good."""
        self.tenure = Tenure()

    async def switchover(self, request: pb.SwitchoverRequest) -> pb.SwitchoverReply:
        """The call, at the primary."""
        return await self._see_through(switchover.hand_over(self, request))

    async def step_down(self, request: pb.StepDownRequest) -> pb.StepDownReply:
        """The call, at the primary."""
        return await self._see_through(switchover.step_down(self, request))

    def run_follower(self, following: Following) -> None:
        """Have it live."""
        self._follower_task = self._spawned(following.run())  # outlasts what runs out by itself
        self.following = following

    def whereabouts(self, addresses: Sequence[wire.Address]) -> Whereabouts:
        """Where the primary may be."""
        return Whereabouts(addresses, self.client, self.settings.primaries)

    # What others ask

    @property
    def trouble(self) -> str | None:
        """What an operator should look at: fenced, not captured, not following, not made or restored yet."""
        if self.restore_error is not None:
            return self.restore_error
        if self.awaits_app.is_set() and self.serving is None and self.following is None:
            return f"{self.path}: the app has not made it yet"
        if self.serving is not None:
            return self.serving.trouble or (None if self.tenure.holds else fenced_words(self))
        if self.following is None:
            return None
        return stale_words(self.path, self.following.status, time.time_ns(), self.following.showing.error)

    def remembered_words(self) -> str | None:
        """That it is a follower, though it was started as a primary; None where it is not, or is the primary by now."""
        return self._remembered.words() if self._remembered is not None and self.serving is None else None

    def status(self) -> pb.DatabaseStatus:
        """For the Status call."""
        status = database_status(self, self.trouble or self.leasing.trouble)
        if not status.trouble and not self.settings.auto and (words := self.remembered_words()):
            status.trouble, status.trouble_kind = words, FailureKind.FOLLOWER_NOW
        return status

    async def _answer_status(self, _: Facts) -> Facts:
        status = self.status()
        tls, wrong = self.host.credentials.tls_status(), self.host.credentials.trouble or ""
        facts = primary_facts(
            pb.StatusReply(role=status.role, term=status.term, databases=[status], tls=tls, credentials_error=wrong)
        )
        kept = [str(folder.path) for folder in await asyncio.to_thread(list_discarded, self.path)]
        database = facts["databases"][0]
        if self.serving is not None:
            database["scrub"] = self.serving.database.scrubber.progress.facts()
            return facts | {"discarded": kept}
        scrubbing = self.following.scrubbing if self.following is not None else None
        kept_and_scrubbed = {"discarded": kept, "scrub": scrubbing.scrubber.progress.facts() if scrubbing else None}
        shown = {name: facts[name] for name in ("tls", "credentials_error") if name in facts}
        found = follower_status(self.path, database)
        more = {name: database[name] for name in ("lease", "trouble", "troubles", "since", "lag")}
        found["databases"] = [one | more for one in found["databases"]]
        return facts | found | more | kept_and_scrubbed | shown

    async def _answer_archived(self, _: Facts) -> Facts:
        if self.serving is not None and self.serving.archiver is not None:
            self.serving.archiver.look_again()
        return {}

    async def _answer_barrier(self, request: Facts) -> Facts:
        try:
            return await answer_barrier(self.host.find(self.name), request)
        except Refused:
            # What was committed here before the place was handed over is with whoever has it now.
            last, until_s = self.handed_over
            if now_s() < until_s and int(request.get("followers", 0)) <= last["followers"]:
                return last
            raise

    async def _answer_promote(self, request: Facts) -> Facts:
        return await switchover.promote(self, force=bool(request.get("force")))

    @property
    def lease(self) -> pb.LeaseStatus | None:
        """For people."""
        return lease_status(self.keeper.state, self.tenure) if self.keeper else None
