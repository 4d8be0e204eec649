"""One database of a replica set in this process: the primary's or a follower's, and from one to the other.

What it is to be is decided in `decisions`, or, in a set without a lease, by whoever asks for it; here that is carried
out, one change after the other. The database stays open and locked while it changes hands (`walcast.held`), and
`app.db-walcast/role` says what the node is before anything depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from follower.client import Client
from follower.following import Following, check_replica
from follower.whereabouts import Whereabouts
from follower.written import Written
from node.failover import changes, switchover
from node.failover import state as d
from node.failover.claims import Claim
from node.failover.decisions import start
from node.failover.keeper import Keeper
from node.failover.lease import KEY, Lease
from node.failover.reports import Shown, database_status, fenced_words, lease_status
from node.local_service import Facts, LocalService
from node.settings import MemberSettings
from node.status import replica_status
from primary.served import Refused
from primary.tenure import Tenure, now_s
from walcast import wire
from walcast.discarded import list_discarded
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.facts import primary_facts
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import state_dir
from walcast.statusfile import State
from walcast.store import Store, open_store
from walcast.store.s3_retry import Bounds
from walcast.terms import FOLLOWER, PRIMARY, Standing, TermStart, read_standing

if TYPE_CHECKING:
    from node.host import Host
    from node.serving import Serving

log = logging.getLogger("walcast.failover")

T = TypeVar("T")

LEASE_BOUNDS = Bounds(connect_s=1.0, read_s=1.5, attempts=2)
SILENT_S = 1.5  # a primary with a lease sends a heartbeat every second, or more often if the lease is short
SILENT = 0.35  # of the lease's time
LOOK_S = 0.25
LOOKS = 10  # at least, in the time of a lease
CLOSE_S = 5.0
EVERYWHERE = ("0.0.0.0", "::", "[::]")


class Member:
    """Runs from `start` to `close`. `settled` is set once it has a role and others can know of it."""

    def __init__(self, host: Host, settings: MemberSettings) -> None:
        self.host = host
        self.settings = settings
        self.name = settings.database.name
        self.path = settings.database.path
        self.settled = asyncio.Event()
        self.tenure = Tenure()
        self.standing = Standing(settings.role, 0)
        self.serving: Serving | None = None
        self.following: Following | None = None
        self.keeper: Keeper | None = None
        self.changing = asyncio.Lock()
        self.handing: asyncio.Future[bool] | None = None
        self.archiving = False
        self.written: Written | None = None
        self.report: Facts | None = None
        self._promotion: asyncio.Future[Facts] | None = None
        self._promotion_after = 0
        self._new = False
        self._error: WalcastError | None = None
        self._reason: str | None = None
        self.id = ""
        self._store: Store | None = None
        self._lease_store: Store | None = None
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
        self.spawn(self._run())

    def spawn(self, work: Awaitable[object]) -> asyncio.Task[Any]:
        """Work that ends with the member; what it raises is the member's failure."""
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
        if task.cancelled() or not isinstance(task.exception(), Refused):
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
            Shown(self).stopped()
            self.host.forget(self.name)
            await self.serving.close(self.host.inodes, patience_s=1.0)
        for store in (self._store, self._lease_store):
            if store is not None:
                store.close()
        never_was = self.settings.role == PRIMARY and not self.settled.is_set()
        if self._new and isinstance(self._error, ConfigError) and (never_was or not self.path.exists()):
            await asyncio.to_thread(changes.forget_state, self.path)

    async def _run(self) -> None:
        settings = self.settings
        folder = state_dir(self.path)
        standing = read_standing(folder)
        role = standing.role if standing else settings.role
        if role == FOLLOWER and not settings.replace:
            check_replica(self.path)
        self.standing = standing or Standing(role, 0, history=())
        self._new = not folder.exists()
        await self._find_role(role)
        await self._listen()
        while True:
            action = await self._actions.get()
            await self._see_through(self._change(action))

    async def _change(self, action: d.Action) -> None:
        async with self.changing:
            await self._carry_out(action)

    async def _find_role(self, role: str) -> None:
        if self.settings.auto and self.settings.eligible and self.unreachable:
            raise ConfigError(self.unreachable)
        self.id = self.settings.follower_id or changes.persistent_id(self.path)
        with_lease = await self._find_lease()
        if role == PRIMARY:
            if with_lease:
                self.tenure.set(-math.inf, -math.inf)
            self.serving = await changes.open_primary(self)
            if not with_lease:
                await changes.on_air(self)
                if self.standing.history:  # nobody else would tell one that was away when this node was promoted
                    term, name = self.serving.served.log.term, self.database_name
                    before = [wire.Address.parse(self.standing.primary)] if self.standing.primary else []
                    self.spawn(changes.tell(self, [*self.settings.primaries, *before], term, name))
                return
            changes.fence(self)
        else:
            changes.follow(self, self.settings.primaries)
        if with_lease:
            self._keep_lease(role == PRIMARY)

    async def _listen(self) -> None:
        answers = {"status": self._answer_status, "promote": self._answer_promote, "archived": self._answer_archived}
        self._local = LocalService(self.path, answers, lambda: self.serving.database if self.serving else None)
        await self._local.start()
        self.spawn(Shown(self).run())

    # The lease

    async def _find_lease(self) -> bool:
        """Does this set go by a lease? One that is there is heeded by everybody."""
        archive = self.settings.database.archive
        if not archive:
            if self.settings.auto:
                raise ConfigError(f"{self.path}: --auto-failover needs an archive, where the lease is kept")
            return False
        self._store = open_store(archive)
        store = open_store(archive, LEASE_BOUNDS)
        self._lease_store = store
        try:
            if not self.settings.auto and (self.standing.role == FOLLOWER or not self.standing.lease):
                return self.standing.lease or await asyncio.to_thread(self._is_kept, store)
            if await asyncio.to_thread(store.honours_swaps):
                await asyncio.to_thread(self._check_newcomer, store)
                return True
        except Unavailable as error:
            if self.standing.lease or self.settings.auto:
                log.warning("the lease cannot be asked for", extra={"url": store.url, "error": str(error)})
                return True  # not without it
            return False
        self._reason = f"no automatic failover: {store.url} ignores preconditions, so no lease can be kept there"
        log.error("no automatic failover", extra={"url": store.url, "reason": "the store ignores preconditions"})
        return False

    def _is_kept(self, store: Store) -> bool:
        """Is there a lease, of which this node was not told?"""
        try:
            found = store.read(KEY)
        except ConfigError as error:
            if self.standing.role == FOLLOWER:
                raise
            log.warning("the archive cannot be asked for a lease", extra={"url": store.url, "error": str(error)})
            return False  # the archiver says so, too, and followers can be served all the same
        if found is not None:
            self._check_newcomer(store)
        return found is not None

    def _check_newcomer(self, store: Store) -> None:
        """A primary that never took part must not make way for a set that is not its own, nor lead it: either would
        overwrite somebody's database."""
        if self.standing.role != PRIMARY or self.standing.lease or self.settings.force:
            return
        found = store.read(KEY)
        if found is None:
            return
        lease = Lease.decode(found.data)
        holder = "this node's id in another life" if lease.holder == self.id else f"{lease.holder} at {lease.address}"
        raise ConfigError(
            f"{self.path}: {store.url} has a primary already: {holder}, term {lease.term}; give this one another "
            "archive, start it with `walcast follower … --replace`, or take the place of one that is gone with --force"
        )

    def _keep_lease(self, primary: bool) -> None:
        assert self._lease_store is not None
        settings = self.settings
        log_term = self.serving.served.log.term if self.serving else self.standing.term
        node = d.Node(
            self.id,
            str(self.address),
            secrets.token_hex(8),
            settings.lease_s,
            auto=settings.auto and settings.eligible,
            priority=settings.priority,
        )
        self.keeper = Keeper(
            self._lease_store,
            start(node, term=log_term, primary=primary, first=not self.standing.lease),
            act=self.act,
            changed=self._set_tenure,
            claim=self._claim,
        )
        if settings.force and primary:
            self.keeper.feed(d.Wanted(now_s()))
        self.spawn(self.keeper.run())
        self.spawn(self._look_at_stream())

    @property
    def lease_s(self) -> float:
        """The time of the lease that the set goes by; infinite without one."""
        lease = self.keeper.state.lease if self.keeper is not None else None
        if lease is not None:
            return lease.lease_s
        return self.settings.lease_s if self.settings.auto or self.standing.lease else math.inf

    def _set_tenure(self, state: d.State) -> None:
        """At once after each decision, before anything else happens."""
        if state.role is d.Role.PRIMARY and not state.handing:
            self.tenure.set(state.from_s, state.until_s)
        else:
            self.tenure.set(-math.inf, -math.inf)

    async def _claim(self, nonce: str) -> Claim:
        """How far this node is, with what the archive has."""
        following = self.following
        applier = following.applier if following else None
        if following is None or applier is None or not applier.position:
            raise Unavailable("there is no replica yet")
        await following.catch_up_from_archive()
        return Claim(self.id, nonce, applier.term, applier.position.txid, self.settings.priority)

    async def _look_at_stream(self) -> None:
        """A primary that says nothing may be gone; what this follower has may be too old."""
        while True:
            await asyncio.sleep(min(LOOK_S, self.lease_s / LOOKS))
            self.feed_following()

    def feed_following(self, *, ended: bool = False) -> None:
        """Tell the decisions how it goes with the stream; `ended`: the primary has said that it is over."""
        following = self.following
        applier = following.applier if following else None
        if self.keeper is None or following is None or applier is None:
            return
        # Noticed early enough to claim: whoever notices only when the lease is over is not waited for.
        streaming = not ended and following.silent_s < min(SILENT_S, self.lease_s * SILENT)
        # How far behind it was when the primary was last heard of: after that nobody can tell.
        fit = bool(applier.position) and following.showing.behind_s <= self.settings.max_lag_s
        self.keeper.feed(d.Following(now_s(), streaming, applier.term, applier.position.txid, fit))

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
                await changes.promote(self, term)
            case d.Fence():
                changes.fence(self)
            case d.Resume():
                await changes.resume(self)
            case d.Follow(lease):
                if lease.holder != self.id:
                    await changes.go_to(self, lease)

    # As the owner of a follower

    def streaming(self, primary: str, term: int, history: Sequence[TermStart]) -> None:
        standing = Standing(FOLLOWER, term, primary, tuple(history), self.keeper is not None)
        if standing != self.standing:
            changes.stand(self, standing)
        self.host.refuse(self.name, changes.refusal(self, primary))
        self.settled.set()
        self.feed_following()
        changes.forget_log(self)

    def lost(self, error: Exception) -> None:
        self.feed_following()

    def keep(self, fork: Position) -> bool:
        return changes.keep_discarded(self, fork)

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
        listening = self.host.listening
        far = any(not primary.is_loopback for primary in self.settings.primaries)
        if self.settings.advertise or (listening.host not in EVERYWHERE and not (far and listening.is_loopback)):
            return None
        return f"{self.path}: other nodes cannot reach this one at {listening}; say where: --advertise HOST:PORT"

    @property
    def store(self) -> Store | None:
        """The archive, to read from."""
        return self._store

    def client(self, address: wire.Address) -> Client:
        """For the primary at `address`."""
        return Client(
            address,
            self.host.settings.tls,
            database=self.name,
            follower_id=self.id,
            guess=self.settings.guess,
            address=str(self.address) if self.settings.eligible and not self.unreachable else "",
        )

    @property
    def database_name(self) -> str:
        """What the primary calls it; "" when nobody said, and it may be the only one there."""
        return "" if self.settings.guess else self.name

    def channel(self, address: wire.Address) -> grpc.Channel:
        """To another node, for a call or two."""
        credentials = self.host.settings.tls.channel(address)
        if credentials is None:
            return grpc.insecure_channel(str(address), options=wire.OPTIONS)
        return grpc.secure_channel(str(address), credentials, options=wire.OPTIONS)

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
        self.following = following
        self._follower_task = self.spawn(following.run())

    def whereabouts(self, addresses: Sequence[wire.Address]) -> Whereabouts:
        """Where the primary may be."""
        return Whereabouts(addresses, self.client)

    # What others ask

    @property
    def trouble(self) -> str | None:
        """What an operator should look at: fenced, not captured, not following."""
        if self.serving is not None:
            return self.serving.trouble or (None if self.tenure.holds else fenced_words(self))
        if self.following is not None and self.following.status.state in (State.DISCONNECTED, State.DIVERGED):
            return f"{self.path}: {self.following.status.state}"
        return None

    def status(self) -> pb.DatabaseStatus:
        """For the Status call."""
        return database_status(self, self.trouble or self._reason)

    async def _answer_status(self, _: Facts) -> Facts:
        status = self.status()
        facts = primary_facts(pb.StatusReply(role=status.role, term=status.term, databases=[status]))
        kept = [str(folder.path) for folder in await asyncio.to_thread(list_discarded, self.path)]
        if self.serving is not None:
            return facts | {"discarded": kept}
        database = facts["databases"][0]
        return replica_status(self.path) | {name: database[name] for name in ("lease", "trouble")} | {"discarded": kept}

    async def _answer_archived(self, _: Facts) -> Facts:
        if self.serving is not None and self.serving.archiver is not None:
            self.serving.archiver.look_again()
        return {}

    async def _answer_promote(self, request: Facts) -> Facts:
        return await switchover.promote(self, force=bool(request.get("force")))

    @property
    def lease(self) -> pb.LeaseStatus | None:
        """For people."""
        return lease_status(self.keeper.state, self.tenure) if self.keeper else None
