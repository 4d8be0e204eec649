"""Feeds the decisions with time and with what the store answers, and carries out what concerns the store.

One thread asks the store, so that a store that hangs holds up nothing else; what it does not answer in a quarter of the
lease's time counts as failed, and the request may still be made later: the decisions know of that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from walcast import audit
from walcast.archive import SNAPSHOT_LEVEL
from walcast.errors import Corrupt, Unavailable, WalcastError
from walcast.lasting import AGAIN_S, is_passing, outlast
from walcast.store import ForeignObject, ObjectChanged, Store, UnsettledObject
from walcast.terms import is_plausible_term
from walcast_node.failover import state as d
from walcast_node.failover.claims import Claim, read_claims
from walcast_node.failover.decisions import step
from walcast_node.failover.lease import KEY, Lease, is_other, other_words
from walcast_node.process.thread_pool import Threads
from walcast_primary.tenure import now_s

log = logging.getLogger("walcast.failover")

T = TypeVar("T")

THREADS = 4  # of which all but one may hang
PATIENCE = 4  # requests, in the time of a lease
READING = 0.75  # of the time of a request: what was read of the claims by then is what there is
MEND = "no node goes by it: look at it and mend it with `walcast repair`"


class Keeper:
    """One node's. `act` is called, in the event loop, with every action that is not about the store, `changed` after
    every step; `claim` catches up from the archive and says how far this node is; `database_id` is that of its
    database, "" while nobody knows. A lease of another database is no lease to this node, unless it may `take_over`."""

    def __init__(
        self,
        store: Store,
        state: d.State,
        *,
        act: Callable[[d.Action], None],
        changed: Callable[[d.State], None],
        claim: Callable[[str], Awaitable[Claim]],
        database_id: Callable[[], str] = lambda: "",
        take_over: bool = False,
    ) -> None:
        self.state = state
        self.error: str | None = None
        self._recorded: tuple[int, str] | None = None
        self._store = store
        self._act = act
        self._changed = changed
        self._claim = claim
        self._database_id = database_id
        self._take_over = take_over
        self._wake = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()
        self._due: list[d.Action] = []  # what was decided and is not begun yet
        self._told = True  # does `changed` know the state?
        self._threads = Threads(THREADS, thread_name_prefix="lease")

    def feed(self, event: d.Event) -> None:
        """Something happened. A MemoryError says that it was not taken in; what follows from an event that was is done,
        at once or a little later."""
        state, actions = step(self.state, event)
        due = [*self._due, *actions]
        self.state, self._due, self._told = state, due, False
        self._wake.set()
        self._follow_up()

    def _follow_up(self) -> None:
        """Tell the state, and begin the actions that are due. What there is no memory for stays due."""
        try:
            if not self._told:
                self._changed(self.state)
                self._told = True
            while self._due:
                action = self._due.pop(0)
                try:
                    self._begin(action)
                except MemoryError:
                    self._due.insert(0, action)  # where it was: that takes no memory
                    raise
        except MemoryError as error:
            is_passing(error, self._store.url, "lease")

    def _begin(self, action: d.Action) -> None:
        if isinstance(action, d.Read | d.Swap | d.MakeClaim | d.ReadClaims):
            asking = asyncio.create_task(self._ask(action))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        else:
            log.debug("decided", extra={"action": type(action).__name__})
            self._act(action)

    async def run(self) -> None:
        """Until cancelled."""
        self._threads.start_all()
        try:
            await outlast(self._turn_by_turn, self._store.url, "lease")
        finally:
            for asking in list(self._asking):
                asking.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _turn_by_turn(self) -> None:
        while True:
            self.feed(d.Tick(now_s()))
            self._wake.clear()
            most_s = 3600.0 if self._told and not self._due else AGAIN_S
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(self.state.tick_s - now_s(), most_s))):
                    await self._wake.wait()

    async def _ask(self, action: d.Read | d.Swap | d.MakeClaim | d.ReadClaims) -> None:
        """Carry out one request, and feed its answer: one, whatever happens. The decisions wait for it."""
        event: d.Event | None = None
        with suppress(MemoryError):
            event = await self._event_of(action)

        async def feed() -> None:
            self.feed(event or d.Failed(now_s()))

        await outlast(feed, self._store.url, "lease")

    async def _event_of(self, action: d.Read | d.Swap | d.MakeClaim | d.ReadClaims) -> d.Event:
        try:
            event = await self._answer(action)
        except ObjectChanged:
            event = d.Refused(now_s())
        except (WalcastError, OSError, TimeoutError) as error:
            self._failed(str(error) or "the store does not answer in time")
            event = d.Failed(now_s())
        except MemoryError:
            raise
        except Exception:
            log.exception("the lease cannot be asked for")
            event = d.Failed(now_s())
        else:
            if self.error is not None:
                log.info("the lease can be asked for again")
            self.error = None
        return event

    def _failed(self, error: str) -> None:
        if error != self.error:
            log.warning("the lease cannot be asked for, trying again", extra={"error": error})
        self.error = error

    async def _answer(self, action: d.Read | d.Swap | d.MakeClaim | d.ReadClaims) -> d.Event:
        match action:
            case d.Read():
                found = await self._in_thread(self._read)
                return d.Found(now_s(), *found)
            case d.Swap(lease, version):
                named = replace(lease, database=self._database_id() or lease.database)
                made = await self._in_thread(lambda: self._store.swap(KEY, named.encode(time.time()), version))
                self._record(named)
                return d.Swapped(now_s(), lease.nonce, made)
            case d.MakeClaim(nonce):
                async with asyncio.timeout(self._lease_s):
                    claim = await self._claim(nonce)
                await self._in_thread(lambda: self._put(claim))
                return d.Claims(now_s(), made=claim)
            case d.ReadClaims():
                return d.Claims(now_s(), await self._in_thread(self._read_claims))

    def _record(self, lease: Lease) -> None:
        """In the audit trail, once for each term and holder: renewals change nothing."""
        written = lease.term, lease.holder
        if written != self._recorded:
            self._recorded = written
            facts = {"term": lease.term, "holder": lease.holder, "address": lease.address, "outcome": "written"}
            audit.record("lease", f"node:{self.state.node.id}", url=self._store.url, **facts)

    @property
    def _lease_s(self) -> float:
        lease = self.state.lease
        return lease.lease_s if lease is not None else self.state.node.lease_s

    async def _in_thread(self, work: Callable[[], T]) -> T:
        async with asyncio.timeout(self._lease_s / PATIENCE):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _read(self) -> tuple[Lease | None, str | None]:
        try:
            found = self._store.read(KEY)
        except (ForeignObject, UnsettledObject) as error:
            raise Unavailable(f"{self._store.url}: {error}; {MEND}") from error
        if found is None:
            self._check_archive()
            return None, None
        try:
            lease = Lease.decode(found.data)
        except Corrupt as error:
            raise Unavailable(f"{self._store.url}: {error}; {MEND}") from error
        seen = max(self.state.term, self.state.lease.term if self.state.lease is not None else 0)
        if not is_plausible_term(lease.term, seen):
            known = f"the newest term that this node has seen is {seen}, and the lease is of term {lease.term}"
            raise Unavailable(f"{self._store.url}: {known}; {MEND}")
        if is_other(lease, self._database_id()) and not self._take_over:
            raise Unavailable(other_words(self._store.url, lease, self._database_id()))
        return lease, found.version

    def _check_archive(self) -> None:
        """Unavailable where a lease was and not even an archive is: a folder that is not mounted, which is another one
        on each host. A lease that is made there binds nobody."""
        state = self.state
        if state.wanted or (state.first and state.lease is None):
            return
        if next(iter(self._store.list(self._store.level_prefix(SNAPSHOT_LEVEL))), None) is None:
            raise Unavailable(
                f"{self._store.url}: neither the lease nor an archive is there any more; see that the folder is "
                "mounted, or, if it was emptied on purpose, start the primary with --force"
            )

    def _put(self, claim: Claim) -> None:
        self._store.put(claim.key, claim.encode(), timestamp_ms=time.time_ns() // 1_000_000)

    def _read_claims(self) -> tuple[Claim, ...]:
        """In the time that is waited for them: one that is not read is as good as none."""
        lease = self.state.lease
        until_s = time.monotonic() + self._lease_s / PATIENCE * READING
        expected = (self.state.node.id, *(lease.followers if lease is not None else ()))
        return tuple(claim for _, claim in read_claims(self._store, expected, until_s=until_s))
