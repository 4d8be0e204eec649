"""Keep a database a live replica: find out where it is, bring it up to date, stay with the primary, for ever.

The ways back to the stream, each tried when the one before does not lead there:

    the stream from the replica's position        the primary's log still has it
    what the archive has after the position       the log has moved on
    the pages that differ, from the primary       the replica diverged, was changed, or the archive does not connect

All of them end in one commit under the replica's readers. Nothing else ever changes the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import struct
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from walcast import wire
from walcast.appurl import ANY_APP_URL, AppUrlPolicy
from walcast.discarded import Circumstances
from walcast.errors import (
    ConfigError,
    Corrupt,
    DiskFull,
    Diverged,
    Exhausted,
    ProtocolViolation,
    Unavailable,
    WalcastError,
)
from walcast.held import Held
from walcast.identifiers import printable
from walcast.identity import OtherDatabase
from walcast.lasting import outlast
from walcast.permissions import OWNER_ONLY
from walcast.position import Position
from walcast.rarely import Rarely
from walcast.rpc import replication_pb2 as pb
from walcast.scrub import DEFAULT_BYTES_PER_S
from walcast.shortage import shortage
from walcast.statedir import StateDir, state_dir
from walcast.statusfile import State, Status
from walcast.store import Store
from walcast.terms import TermStart, forked_at, term_of
from walcast_follower.apply.applier import Applier, ChecksumMismatch
from walcast_follower.apply.wal_truncation import WalKeeper
from walcast_follower.bootstrap.bootstrap import Progress, from_archive
from walcast_follower.bootstrap.downloads import Downloads
from walcast_follower.bootstrap.fresh_file import Fresh
from walcast_follower.bootstrap.overwrite_check import has_database
from walcast_follower.bootstrap.page_copy import from_primary
from walcast_follower.bootstrap.rebase import catch_up
from walcast_follower.bootstrap.replaced_databases import keep_aside
from walcast_follower.bootstrap.replacement import was_replaced
from walcast_follower.bootstrap.replica_identity import ReplicaIdentity
from walcast_follower.bootstrap.unfinished_copy import Unfinished
from walcast_follower.disk_room import Room
from walcast_follower.in_thread import InThread
from walcast_follower.owner import Alone, Owner
from walcast_follower.replica_scrubber import ReplicaScrubber, Rotten
from walcast_follower.status_reporter import Showing
from walcast_follower.subscribe.message_checks import said_by
from walcast_follower.subscribe.partial_transaction import PartialTransaction
from walcast_follower.subscribe.primary_client import Client, Elsewhere, MustCopy, OtherPageSize, Stream
from walcast_follower.subscribe.primary_locator import Whereabouts
from walcast_follower.subscribe.stream_session import Streaming

log = logging.getLogger("walcast.follower")

RETRY_FIRST_S = 0.1
RETRY_MOST_S = 5.0
RENEW_FROM_S = 2 * RETRY_FIRST_S  # after the second failure in a row the connection itself is suspected
RETRY_BOOTSTRAP_MOST_S = 120.0  # without room for a first copy
ARCHIVE_AGAIN_S = 60.0  # after one that there was no room or memory for, the primary alone is asked for so long
STEADY_S = 10.0  # a stream that lasted for so long was no failure
MEND_EVERY_S = 1.0
SYNC_S = 5.0
WORTH_BYTES = 256 << 10
DROPPED = "dropped the connection to a primary that sent what cannot be; trying again"
BURST = 3  # lines of a kind before they become rare

FORKED = "another node became the primary, and this one may have had transactions that it had not"
NOT_APPLIED = (
    "this state was not applied here, as far as the records beside it and the primary's log tell: somebody wrote to "
    "this database while no walcast ran here, or a power failure lost the record of what was applied last"
)
# What Python and SQLite say of values that are none. All are checked before they are used; one that was forgotten costs
# the connection that it came on and not the follower.
NOT_TAKEN = (ValueError, ArithmeticError, LookupError, struct.error, apsw.Error)
REPLACED = "it was no replica of the primary's database, and was to be replaced by one"


class HandedOver(Exception):
    """The replica became the primary."""


class Following:
    """One replica and its primary, wherever that is. `held`: a replica that this process has open already. `replace`:
    what is no replica of the primary's database may be overwritten. `app_urls`: which addresses of the primary's app
    are used. `mode`: of a replica where there was no file."""

    def __init__(
        self,
        path: Path,
        where: Client | Whereabouts,
        *,
        store: Store | None = None,
        owner: Owner | None = None,
        held: Held | None = None,
        replace: bool = False,
        scrub_bytes_per_s: float = DEFAULT_BYTES_PER_S,
        app_urls: AppUrlPolicy = ANY_APP_URL,
        mode: int = OWNER_ONLY,
    ) -> None:
        self.path = path
        self._mode = mode
        self.where = where if isinstance(where, Whereabouts) else Whereabouts.only(where)
        self.connected = asyncio.Event()
        self.progress: Callable[[], Progress | None] = lambda: None
        self.history: tuple[TermStart, ...] = ()
        self.database = ""  # what the primary calls it
        self.term = 0  # the newest one that was seen; who is of an older one is not followed
        self._owner = owner or Alone()
        self._store = store
        self._held = held
        self._state = held.state if held else StateDir(path)
        self._applier: Applier | None = None
        self._keeper: WalKeeper | None = None
        self._scrub_bytes_per_s = scrub_bytes_per_s
        self.scrubbing: ReplicaScrubber | None = None
        self._rotten = False
        self.showing = Showing(self._state.path, self.where.client, app_urls)
        self._using = asyncio.Lock()  # the applier, which is for one at a time
        self._moved = asyncio.Event()
        self._stream: Stream | None = None
        self._offered = False
        self._released = False
        self._task: asyncio.Task[None] | None = None
        self._retry_s = RETRY_FIRST_S
        self._stopping = False
        self._threads = InThread()
        self._catching_up: asyncio.Task[bool] | None = None
        self._was_replica = any((state_dir(path) / name).exists() for name in ("positions", "log"))
        self._identity = ReplicaIdentity(path, self._state.path, replace=replace)
        self._identity.is_replica |= held is not None
        self._mismatched = False
        self._refused_before = False
        self._copied_s = -MEND_EVERY_S
        self._room = Room()
        self._unfinished = Unfinished(self._state.path)
        self._begun = PartialTransaction(self._state.path)
        self._begun.on_whole = self._forget_partial
        self._downloads = Downloads(store, self._state.path) if store is not None else None
        self._may_have_partial = True
        self._archive_not_before_s = 0.0
        self._rarely = Rarely(log)

    # What others ask

    @property
    def status(self) -> Status:
        """What the status file says."""
        return self.showing.status

    @property
    def applier(self) -> Applier | None:
        """The replica's, once there is one."""
        return self._applier

    @property
    def state(self) -> StateDir:
        """The state folder."""
        return self._state

    @property
    def identity(self) -> ReplicaIdentity:
        """Of which database the replica is a copy."""
        return self._identity

    @property
    def silent_s(self) -> float:
        """For how long the primary has said nothing; infinite without a stream."""
        return self._stream.silent_s if self._stream is not None else math.inf

    @property
    def was_offered(self) -> bool:
        """Does the primary offer its place now?"""
        return self._offered

    @property
    def _client(self) -> Client:
        return self.where.client

    def _show(self, state: State, **facts: Any) -> None:
        applier = self._applier
        position, term = (applier.position, applier.term) if applier else (Position(), 0)
        self.showing.show(state, term, position, str(self._client.primary), **facts)

    # The life of a follower

    async def run(self) -> None:
        """Follow until cancelled. ConfigError when the primary says that it can never work."""
        self._task = asyncio.current_task()
        ticking = asyncio.create_task(outlast(self.showing.keep_showing, self.path, "status"))
        try:
            with contextlib.suppress(MemoryError):
                self._show(State.BOOTSTRAPPING if self._held is None else State.DISCONNECTED)
            await outlast(partial(self._retrying, self._begin), self.path, "follower")
            await outlast(partial(self._retrying, self._follow), self.path, "follower")
        except HandedOver:
            pass
        finally:
            self._stopping = True
            ticking.cancel()
            await self._close()

    def go_to(self, primary: wire.Address) -> None:
        """The primary is there now."""
        self.where.tell(primary)
        if primary != self._client.primary:
            self._retry_s = RETRY_FIRST_S
            self._moved.set()
            if self._stream is not None:
                self._stream.leave(f"the primary is at {primary} now")

    async def catch_up_from_archive(self, *, kept: bool = False) -> bool:
        """Apply what the archive has and the replica does not, while there is no stream. Whoever waits for it may give
        up; it goes on, and until then nobody else has the applier. `kept`: what only the replica has, if anything."""
        if self._stream is not None:
            return False
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._catch_up_alone(kept))
        return await asyncio.shield(self._catching_up)

    async def _catch_up_alone(self, kept: bool) -> bool:
        async with self._using:
            return await self._catch_up_from_archive(None if kept else self.circumstances(FORKED))

    async def name_after_loss(self) -> None:
        """Have a name for the replica's state though nobody can be asked for it. Unavailable when it never had one."""
        if self._applier is not None and not self._applier.position:
            async with self._using:
                applier = self._applier
                if applier is not None and not applier.position:
                    applier.name_after_loss()
                    facts = {"database": str(self.path), "position": str(applier.position)}
                    log.warning("gave the replica's state a name of its own", extra=facts)

    async def release(self) -> Applier | None:
        """End following, and give the applier away, with the write lock and the state folder; None when there is none
        yet. While the primary offers its place (`Owner.take_over`) the answer can still be sent."""
        self._released = self.showing.over = True
        self._begun.clear()
        await self._stop_scrubbing()
        if not self._offered and self._task is not None:
            self._stopping = True
            self._task.cancel()
            await asyncio.wait([self._task])
        elif self._keeper is not None:
            await self._keeper.close()
        await self._threads.settled()
        applier, self._applier = self._applier, None
        return applier

    async def _retrying(self, step: Callable[[], object]) -> None:
        """Do `step` until it returns; what may pass is tried again, later each time, at times of its own, until
        something was achieved. A connection alone is nothing: what fails behind it would be tried without a pause."""
        while True:
            before = self._achieved
            try:
                await self._have_room()
                await self.where.turn()
                await step()  # type: ignore[misc]
                return
            except (Unavailable, Corrupt, Diverged, MustCopy, OtherPageSize) as error:
                failure: WalcastError = error
            except ConfigError as error:
                # It ends the follower, so it must not come of one damaged byte: whatever is final is said twice. Nor
                # can a node end it that others named, or one that this follower has followed and that has changed.
                if self._refused_before and self.where.is_given and not self.connected.is_set():
                    raise
                self._refused_before, failure = True, error
                if not self.where.is_given:
                    self.where.forget_told()
                    self.where.failed()
            except (OSError, MemoryError, RuntimeError) as error:
                known = shortage(error, self.path)
                if known is None:
                    raise
                failure = known
            except NOT_TAKEN as error:
                failure = shortage(error, self.path) or self._not_taken(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Nobody cancelled the follower: gRPC raises this in a write to a call that `Stream.leave` has ended.
                failure = Unavailable(f"{self._client.primary}: the stream was left")
            if self._achieved != before:
                self._retry_s = RETRY_FIRST_S
            if isinstance(failure, DiskFull):
                self._room.lacks(failure)
            elif not isinstance(failure, Exhausted | ConfigError):  # the same node is asked again what it meant
                self._turn_away(failure)
            self._lost(failure)
            if self._retry_s >= RENEW_FROM_S and not isinstance(failure, DiskFull | Exhausted | Elsewhere):
                await self._client.renew()
            await self._pause(self._retry_s * random.uniform(0.5, 1.0))
            first = isinstance(failure, DiskFull) and self._applier is None
            self._retry_s = min(self._retry_s * 2, RETRY_BOOTSTRAP_MOST_S if first else RETRY_MOST_S)

    def _not_taken(self, error: Exception) -> ProtocolViolation:
        """What the checks have missed."""
        message = (
            f"{self._client.primary}: what it sent cannot be taken: {type(error).__name__}: {printable(str(error))}"
        )
        log.debug("what a primary sent cannot be taken", extra={"database": str(self.path)}, exc_info=error)
        return ProtocolViolation(message)

    @property
    def _achieved(self) -> tuple[Position, int]:
        """Changes with each transaction that was applied, and with each part of a copy, or of a long transaction,
        that is worth a try."""
        position = self._applier.position if self._applier is not None else Position()
        return position, (self._unfinished.received_bytes + self._begun.size) // WORTH_BYTES

    async def _have_room(self) -> None:
        """After the disk was full, before anything else is tried: give back what the replica's own WAL takes of it.
        DiskFull while that is not enough: a reader has to go, or somebody to free some."""
        if not self._room.is_lacking:
            return
        detail = ""
        if self._keeper is not None:
            async with self._using:
                try:
                    await self._keeper.give_back()
                except DiskFull as error:
                    detail = error.detail
        self._room.check(detail)

    async def _pause(self, seconds: float) -> None:
        """Before the next try; less when somebody says where the primary is."""
        self._moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()

    def _turn_away(self, error: WalcastError) -> None:
        """Try elsewhere next: where this node says, or at the next address."""
        told = error.primary if isinstance(error, Elsewhere) else ""
        news = False
        if told and told != str(self._client.primary):
            with contextlib.suppress(ConfigError):  # what others say may be nonsense
                news = self.where.tell(wire.Address.parse(told))
        if not news:
            self.where.failed()

    def _lost(self, error: WalcastError) -> None:
        self._owner.lost(error)
        bootstrapping = self._applier is None
        state = State.BOOTSTRAPPING if bootstrapping else State.DISCONNECTED
        detail = error.detail if isinstance(error, DiskFull) else None
        key: Hashable = "trying again", type(error), bool(detail)
        event, level, burst = "trying again", logging.WARNING, BURST if detail is None else 1
        if isinstance(error, ProtocolViolation):
            event = DROPPED
        elif isinstance(error, Elsewhere) and error.primary:  # roles change, as somebody asked for; no fault
            event, level, key = "the primary is elsewhere", logging.INFO, ("elsewhere", error.primary)
        facts = {"error": str(error), "database": str(self.path)}
        self._rarely.log(level, event, key, facts, burst=burst)
        self.showing.error = error
        self._show(state)

    async def _begin(self) -> None:
        """Have a replica, and become its writer. What was done already, should this be called again, stays."""
        adopted = self._held is not None
        if self._applier is None:
            await self._open()
        applier = self._applier
        assert applier is not None
        self._held = None
        self._keeper = self._keeper or WalKeeper(applier)
        if self.scrubbing is None:
            self._scrub(applier)
        if adopted:
            return
        self._show(State.CATCHING_UP)
        if not applier.position:
            log.warning("the replica's state has no name here", extra={"database": str(self.path)})

    async def _open(self) -> None:
        if self._held is not None:
            self._applier = await self._threads.run(Applier.adopt, self._held)
            return
        fresh = None
        if not has_database(self.path):
            fresh = await self._from_archive()
            if fresh is None:
                await self._copy()
            self._forget_partial()
            self._identity.made()
        self._applier = await self._threads.run(Applier.open, self.path, self._state.path, fresh)

    def _scrub(self, applier: Applier) -> None:
        """Pages are examined only while there is a stream: then nobody uses the applier in another thread, and there is
        a primary to mend them from."""

        def rotten(error: Rotten) -> None:
            if self._stream is not None:
                self._stream.leave(error)

        scrubbing = ReplicaScrubber(applier, lambda: self._stream is not None, rotten, self._scrub_bytes_per_s)
        scrubbing.start()
        self.scrubbing = scrubbing

    async def _stop_scrubbing(self) -> None:
        scrubbing, self.scrubbing = self.scrubbing, None
        if scrubbing is not None:
            await scrubbing.stop()

    def _progress(self) -> Progress:
        """Shows the progress, and ends what runs in a thread when we are to stop."""
        show = self.progress()

        def progress(done: int, total: int) -> None:
            if self._stopping:
                raise Unavailable("stopping")
            self.showing.error = None
            if show is not None:
                show(done, total)

        return progress

    async def _from_archive(self) -> Fresh | None:
        if self._downloads is None or time.monotonic() < self._archive_not_before_s:
            return None
        progress = self._progress()
        try:
            return await self._threads.run(
                self._downloads.run,
                lambda store: from_archive(store, self.path, self._state.path, progress, mode=self._mode),
            )
        except Exception as error:  # noqa: BLE001 - whatever is there, the primary is asked
            # Also for want of room or memory: what an archive says of its size may be a lie, and the primary knows it.
            if shortage(error, self.path) or isinstance(error, DiskFull | Exhausted):
                self._archive_not_before_s = time.monotonic() + ARCHIVE_AGAIN_S
            self._archive_failed("cannot bootstrap from the archive", "archive", error)
            return None

    def _archive_failed(self, what: str, key: str, error: Exception) -> None:
        """One line, with a traceback where nobody expects such an error."""
        assert self._store is not None
        known = error if isinstance(error, WalcastError) else shortage(error, self.path)
        if known is None:
            log.error(what, exc_info=error, extra={"url": self._store.url})
            return
        facts = {"url": self._store.url, "error": str(known)}
        self._rarely.log(logging.WARNING, what, key, facts, burst=BURST)

    async def _follow(self) -> None:
        """Stream for ever; when the primary cannot go on from here, catch up another way."""
        if not self._identity.is_replica and self._identity.replace:
            self.term, self.history = 0, ()  # of nobody knows what
        while True:
            if self._applier is None:  # it was to be opened again, and could not be
                await self._begin()
            applier = self._applier
            assert applier is not None
            try:
                applier.check_usable()
                position = applier.position
                self.term = max(self.term, applier.term) if self._identity.is_replica else self.term
                self._client.database_id = self._identity.asked
                unnamed = Position(0, applier.checksums.database)
                self._may_have_partial = True
                begun = await self._threads.run(self._begun.offer, position)
                stream_call = self._client.stream(position or unnamed, self.term, begun=begun)
                async with stream_call as stream, self._using:
                    await self._threads.run(self._identity.accepted, stream.welcome.database_id)
                    if applier.position == position:  # nobody caught up from the archive meanwhile
                        if not position:
                            await self._name(stream, applier)
                        await self._stay_with(stream, applier)
            except OtherDatabase as other:
                await self._overwrite(other)
            except MustCopy as must:
                if not self._identity.is_replica:
                    await self._overwrite(must)
                    continue
                if not applier.position:
                    await self._copy_unnamed(applier, str(must))
                    continue
                facts = {"position": str(applier.position), "reason": str(must)}
                self._rarely.log(logging.WARNING, "cannot go on from here", "must copy", facts, burst=BURST)
                self.history = must.history or self.history
                keeping = await self._keep_own(applier, diverged=must.diverged)
                if must.diverged or keeping:
                    self._show(State.DIVERGED)
                if must.diverged or keeping or not await self.catch_up_from_archive(kept=True):
                    self._room.check()
                    await self._copy(keeping)
            except (Diverged, Corrupt) as error:
                facts = {"position": str(applier.position), "error": str(error)}
                self._rarely.log(logging.ERROR, "diverged; mending", "diverged", facts, burst=BURST)
                self._show(State.DIVERGED)
                keeping = await self._keep_own(applier)
                if isinstance(error, Rotten) and not await self._rescan(applier):
                    continue
                await self._copy(keeping)

    async def _rescan(self, applier: Applier) -> bool:
        """Before the page diff, which the checksums of what is on disk must tell what to send. False: all is well."""
        async with self._using:
            wrong = await self._threads.run(applier.rescan, lambda: self._stopping)
        self._rotten = wrong > 0
        log.warning("read all pages", extra={"database": str(self.path), "wrong_pages": wrong})
        return self._rotten

    async def _name(self, stream: Stream, applier: Applier) -> None:
        """The primary's log has the state that has no name here: it was applied, and its record was lost."""
        resumed = stream.welcome.resume_at
        await self._threads.run(applier.name, resumed.term, wire.position_of(resumed))
        log.warning("the primary knows the replica's state", extra={"position": str(applier.position)})

    async def _name_term(self, stream: Stream, applier: Applier) -> None:
        """The primary has the replica's state in its log, in a later term than the one it was applied in: two nodes may
        give a transaction that changes nothing the same TXID."""
        term = term_of(self.history, applier.position.txid)
        if applier.term < term <= stream.welcome.term:
            await self._threads.run(applier.name, term, applier.position)

    async def _copy_unnamed(self, applier: Applier, reason: str) -> None:
        facts = {"database": str(self.path), "reason": reason}
        log.warning("nobody knows the replica's state: mending it by its pages", extra=facts)
        await self._copy(await self._keep_own(applier))

    async def _overwrite(self, why: WalcastError) -> None:
        """What is here is no replica of the primary's database: ConfigError, unless it is to be replaced."""
        if not self._identity.replace:
            raise self._identity.refused(self._client.primary, why) from why
        log.warning("overwriting what is no replica", extra={"database": str(self.path), "reason": str(why)})
        await self._copy(self.circumstances(REPLACED) if self._was_replica else None)

    async def _stay_with(self, stream: Stream, applier: Applier) -> None:
        self._connected(stream, applier)
        await self._name_term(stream, applier)
        began_s = time.monotonic()
        try:
            assert self._keeper is not None
            take_over = partial(self._take_over, stream, applier)
            streaming = Streaming(
                stream, applier, self._keeper, self._show, self.showing.hear, take_over, self._threads, self._begun
            )
            with said_by(self._client.primary):
                await streaming.run()
        finally:
            self._stream = None
            if time.monotonic() - began_s > STEADY_S:
                self._retry_s = RETRY_FIRST_S
                self._rarely.forget_all()
            if not self._released:
                applier.rollback()  # what was cut off inside a transaction

    def _forget_partial(self) -> None:
        """The replica is there, and a stream leads on from it: nothing that broke off is needed any more."""
        if self._may_have_partial:
            self._may_have_partial = False
            self._unfinished.discard()
            if self._downloads is not None:
                self._downloads.discard()

    def _connected(self, stream: Stream, applier: Applier) -> None:
        self._stream = stream
        self._refused_before = False
        self.where.reached()
        welcome = stream.welcome
        self.term = max(self.term, welcome.term)
        self.database = welcome.database
        self.history = wire.history_of(welcome.history) or self.history  # checked with the welcome
        self.showing.connected(welcome.database, welcome.app_url, nearby=self._client.primary.is_loopback)
        self.connected.set()
        facts = {"primary": str(self._client.primary), "position": str(applier.position)}
        self._rarely.log(logging.INFO, "streaming", "streaming", facts, burst=BURST)
        self._owner.streaming(str(self._client.primary), welcome.term, self.history)

    async def _keep_own(self, applier: Applier, *, diverged: bool = False) -> Circumstances | None:
        """Transactions that only this replica has are kept before it loses them; the circumstances, when the pages that
        are overwritten must be: also of one that is `diverged`, nobody knows where."""
        if not applier.position:
            return self.circumstances(NOT_APPLIED) if self._was_replica and not self._rotten else None
        fork = forked_at(self.history, applier.term, applier.position)
        if fork is None:
            return self.circumstances(FORKED) if diverged else None
        if await self._threads.run(self._owner.keep, fork):
            return None
        return self.circumstances(FORKED)

    def circumstances(self, why: str) -> Circumstances:
        """For what is kept of this replica, now."""
        term = self.history[-1].term if self.history else 0
        return Circumstances(self.path, why, str(self._client.primary), term, self._store.url if self._store else "")

    async def _copy(self, keeping: Circumstances | None = None) -> None:
        """From the primary, into the replica or a new one. Mending again and again is paced."""
        now = time.monotonic()
        if now - self._copied_s < MEND_EVERY_S:
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(self._retry_s * 2, RETRY_MOST_S)
        self._copied_s = time.monotonic()
        if self._identity.replace:
            self.term, self.history = 0, ()  # of another database, perhaps
        mismatched, self._mismatched = self._mismatched, False
        try:
            async with self._using:
                if self._applier is not None:
                    await self._threads.run(self._unfinished.take_begun, self._begun, self._applier)
                await from_primary(
                    self._client,
                    self.path,
                    self._state.path,
                    self._applier,
                    self._progress(),
                    term=self.term,
                    last_mismatched=mismatched,
                    keeping=keeping,
                    identity=self._identity,
                    mode=self._mode,
                    unfinished=self._unfinished,
                )
        except ChecksumMismatch:
            self._mismatched = True
            raise
        except OtherPageSize as other:
            await self._copy_anew(str(other), keep=keeping is not None)
        self._rotten = False
        self._show(State.CATCHING_UP)

    async def _copy_anew(self, reason: str, *, keep: bool) -> None:
        """The whole database, which has pages of another size now, into a new file; the replica can be read meanwhile.
        `keep`: it may have what nobody else has."""
        facts = {"database": str(self.path), "reason": reason}
        self._rarely.log(logging.WARNING, "fetching the whole database anew", "anew", facts, burst=BURST)
        old = self._applier
        assert old is not None
        async with self._using:
            await self._threads.run(old.checkpoint)  # while nothing is late by it
            if keep:
                await self._threads.run(keep_aside, old, self._state.path)
            try:
                await from_primary(
                    self._client,
                    self.path,
                    self._state.path,
                    None,
                    self._progress(),
                    term=self.term,
                    identity=self._identity,
                    mode=self._mode,
                    instead_of=old,
                    unfinished=self._unfinished,
                )
            finally:
                if was_replaced(old):  # also when what came after that failed, or was cancelled
                    await self._retire(old)
            await self._begin()

    async def _retire(self, old: Applier) -> None:
        """Another file is at its place: nobody may go on with this one."""
        self._applier = None
        await self._stop_scrubbing()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.close()
        await self._threads.run(old.retire)

    async def _catch_up_from_archive(self, keeping: Circumstances | None) -> bool:
        applier = self._applier
        if self._downloads is None or applier is None or self._stopping or self._released:
            return False
        if not self._identity.is_replica:
            return False  # nobody has said yet that it is one
        try:
            return await self._threads.run(self._downloads.run, lambda store: catch_up(store, applier, keeping))
        except Exception as error:  # noqa: BLE001 - whatever is there, the primary is asked
            if isinstance(error, DiskFull):
                self._room.lacks(error)
            self._archive_failed("cannot catch up from the archive", "catch up", error)
            return False

    async def _take_over(self, stream: Stream, applier: Applier, offer: pb.HandOver) -> None:
        """The primary has given everything up to a position, and waits."""
        if wire.position_of(offer.position) != applier.position:
            detail = f"this follower is at {applier.position}"
            await stream.answer(pb.HandOverReply(term=offer.term, taken=False, detail=detail))
            return
        self._offered = True
        try:
            reply = await self._owner.take_over(offer)
        finally:
            self._offered = False
        with contextlib.suppress(WalcastError):  # whoever offered may be gone: what was decided stands
            await stream.answer(reply)
            await stream.drain()
        if self._released:
            raise HandedOver

    async def _close(self) -> None:
        await self._stop_scrubbing()
        await self._threads.settled()
        self._unfinished.close()  # what the threads have used until now
        self._begun.close()
        if self._downloads is not None:
            self._downloads.close()
        if self._keeper is not None:
            await self._keeper.close()
        if self._applier is not None:
            self._applier.rollback()
        await self.where.close()
        if self._released:
            self.showing.close()
            return
        with contextlib.suppress(MemoryError):
            self._show(State.STOPPED)
        if self._applier is not None:
            await self._sync(self._applier)
            await asyncio.to_thread(self._applier.close)
        self.showing.close()
        self._state.close()

    async def _sync(self, applier: Applier) -> None:
        """What was received is applied; now it outlives a power cut, too, if the disk answers in time."""
        facts = {"database": str(self.path), "position": str(applier.position)}
        try:
            async with asyncio.timeout(SYNC_S):
                await asyncio.to_thread(applier.sync)
        except (WalcastError, TimeoutError) as error:
            why = str(error) or f"the disk does not answer within {SYNC_S:.0f} s"
            log.warning("stopping: not synced", extra=facts | {"error": why})
        else:
            log.info("stopping: everything received is applied and synced", extra=facts)
