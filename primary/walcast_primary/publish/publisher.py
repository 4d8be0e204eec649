"""The replication service: the log, sent to every follower that asks, from where each one is.

A follower is a cursor into the log, nothing more: what it has not taken stays in the log (one encoding for all),
never in a queue here. gRPC's flow control stops the sending; when the log has moved past a slow follower's cursor it
is told so and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from walcast import audit, wire
from walcast.access import Identity, Kind, Role
from walcast.errors import Corrupt
from walcast.levels import Level
from walcast.rarely import Rarely
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast_primary.publish.barriers import barrier
from walcast_primary.publish.base_copy import copy_pages
from walcast_primary.publish.call_rights import Rights
from walcast_primary.publish.followers import Follower
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.quotas import HOLD_DEFAULT_S, Pace, Quotas, who_of
from walcast_primary.publish.request_checks import (
    check_barrier,
    check_copy,
    check_hello,
    check_step_down,
    check_switchover,
)
from walcast_primary.publish.resumed_transaction import resume_bytes
from walcast_primary.publish.served_database import (
    RECHECK_EVERY_S,
    Refused,
    Served,
    check_known,
    check_same_database,
    check_term,
    look_age_ms,
    named,
)
from walcast_primary.publish.stalled_receivers import unless_stalled
from walcast_primary.publish.visible_status import visible, visible_names
from walcast_primary.transaction_log.segment import Entry

log = logging.getLogger("walcast.primary")

CHUNK_BYTES = 64 << 10  # a receiver must get one within ten seconds, however slow its line is
ACKS_PER_S = 200  # of one that counts for nothing; it sends some twenty
CHECKSUMS_S = 60.0
CHECKSUMS_BYTES_PER_S = 4 << 10  # beyond that
SILENT_S = 10.0  # of a receiver whose page checksums are waited for
STALL_S = 60.0  # of a receiver that takes nothing of its copy
KNOWN_MOST = 20
HELLO_S = 10.0
REFUSED_HELLO_S = 1.0  # an answer before the hello would end the call under whoever is writing it
BURST = 5  # lines of one follower that comes and goes, before they become rare
BURST_OF_ONE = 200  # of all followers of one identity

_LEVELS = {pb.BARRIER_LEVEL_DURABLE: Level.DURABLE, pb.BARRIER_LEVEL_APPLIED: Level.APPLIED}

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Publisher(rpc.ReplicationServicer):
    """The gRPC service over the databases of this process."""

    def __init__(
        self,
        databases: Mapping[str, Served],
        status: Any,
        gate: Gate,
        away: Mapping[str, Refused] | None = None,
        app_url: str = "",
    ) -> None:
        """`gate`: who may call. `away`: names that are refused for now, each with what is said to whoever asks.
        `app_url`: where the app answers on this host, for the apps beside the followers."""
        self._databases = databases
        self._gate = gate
        self._away = {} if away is None else away
        self._status = status
        self._app_url = app_url
        self._stopping = asyncio.Event()
        self._quotas = Quotas()
        self._rights = Rights(gate)
        self._peers: Counter[str] = Counter()
        self._changes: set[asyncio.Task[Any]] = set()
        self._rarely = Rarely(log)
        self._crowds = Rarely(log)  # of its own, or many ids would make it forget who sent them

    def stop(self) -> None:
        """End the streams; new ones are refused."""
        self._stopping.set()
        for served in self._databases.values():
            served.wake()

    # Who may

    def _name(self, name: str, *, guess: bool = False) -> str:
        """Which database is meant by a name, or by none where there is only one."""
        names = list(self._databases) or list(self._away)
        only = name not in self._databases and name not in self._away and len(names) == 1 and (guess or not name)
        return names[0] if only else name

    async def _require(
        self, context: Context, role: Role, name: str, method: str, *, guess: bool = False, also: Role | None = None
    ) -> Identity:
        """Who calls; the call is ended for whoever does not have `role`, or `also`, at the database."""
        database = self._name(name, guess=guess)
        if also is not None and also in self._gate.roles(self._gate.identify(context), database):
            role = also
        return await self._gate.require(context, role, database, method, asked=name)

    def _is_member(self, served: Served, identity: Identity, hello: pb.Hello) -> bool:
        """Do the acknowledgements of this follower count? Refused for an id that is another's, or in use by another."""
        if hello.observer:
            return False
        member = Role.MEMBER in self._gate.roles(identity, served.database.name)
        if member and identity.kind is Kind.NODE and not identity.may_be(hello.follower_id):
            detail = f"its certificate is that of the node {identity.name!r}: start it with --id {identity.name}"
            raise Refused(pb.REFUSAL_KIND_TOO_MANY, detail)
        member = member and identity.may_be(hello.follower_id)
        live = served.followers.find(hello.follower_id)
        if live is not None and live.identity != str(identity):
            if live.member or not member:
                detail = f"the follower {hello.follower_id!r} is connected already, as {live.identity}"
                raise Refused(pb.REFUSAL_KIND_TOO_MANY, f"{detail}: give this one another --id")
            live.ended = f"the id {live.id!r} is that of {identity}: give this follower another --id"
            served.wake()
        return member

    def _admit(self, context: Context) -> tuple[str, float]:
        """A place for a call that may last, until it ends: who has it, and for how long its hello is waited for.
        Refused where there is none."""
        identity = self._gate.identify(context)
        who, hello_s = _who(identity, context), HELLO_S
        if identity.kind is Kind.NOBODY and not self._may_do_something(identity):
            hello_s = REFUSED_HELLO_S
            place = self._quotas.strangers.take("strangers")
        else:
            member = Role.MEMBER in self._gate.roles(identity, "")
            trusted = identity.kind is Kind.USER
            place = self._quotas.calls.take(who, member=member, more=len(self._databases), trusted=trusted)
            place.enter_context(self._busy(context))
        context.add_done_callback(lambda _: place.close())  # type: ignore[arg-type]  # the stubs ask for a call's
        return who, hello_s

    @contextlib.contextmanager
    def _busy(self, context: Context) -> Iterator[None]:
        """Somebody who may do something has a call on this connection."""
        peer = context.peer()
        self._peers[peer] += 1
        try:
            yield
        finally:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    @property
    def busy_peers(self) -> list[str]:
        """Those that have a call which they may make, by gRPC's names."""
        return list(self._peers)

    def _may_do_something(self, identity: Identity) -> bool:
        return any(self._gate.roles(identity, name) for name in ("", *self._databases, *self._away))

    async def _opened(
        self, requests: AsyncIterator[Any], context: Context, check: Callable[[Any], None]
    ) -> tuple[str, Any]:
        """Who has begun a stream or a copy, and its hello, which `check` finds possible. Refused; a call that says no
        hello is ended."""
        try:
            who, hello_s = self._admit(context)
        except Refused as refused:
            if await _first_of(requests, REFUSED_HELLO_S) is None:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(refused))
            raise
        first = await _first_of(requests, hello_s)
        if first is None or first.WhichOneof("kind") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a hello")
        check(first.hello)
        return who, first.hello

    def _find(self, protocol: int, name: str, identity: Identity, *, guess: bool = False) -> Served:
        if protocol != wire.PROTOCOL_VERSION:
            detail = f"this primary speaks protocol {wire.PROTOCOL_VERSION}, the follower {protocol}: upgrade the older"
            raise Refused(pb.REFUSAL_KIND_PROTOCOL_VERSION, detail)
        if self._stopping.is_set():
            raise Refused(pb.REFUSAL_KIND_STOPPING, "the primary is stopping")
        name = self._name(name, guess=guess)
        served = self._databases.get(name)
        if served is None:
            if name in self._away:
                raise self._away[name]
            known = ", ".join(visible_names(self._databases or self._away, self._gate.knows(identity))[:KNOWN_MOST])
            there = f"; there is: {known}; name one with --name" if known else ""
            raise Refused(pb.REFUSAL_KIND_UNKNOWN_DATABASE, f"no database {name!r} here{there}")
        served.check_tenure()
        return served

    # Stream

    async def Stream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.FollowerMessage], context: Context
    ) -> AsyncIterator[pb.PrimaryMessage]:
        """One follower's stream of one database."""
        try:
            who, hello = await self._opened(request_iterator, context, check_hello)
        except Refused as refused:
            yield pb.PrimaryMessage(refusal=refused.refusal)
            return
        identity = await self._require(context, Role.REPLICATE, hello.database, "Stream", guess=hello.database_is_guess)
        try:
            served = self._find(hello.protocol, hello.database, identity, guess=hello.database_is_guess)
            member = self._is_member(served, identity, hello)
            check_same_database(served, hello.database_id)
            position = wire.position_of(hello.position)
            check_term(served.log, hello.position.term)
            resume_at = None if position.txid else named(served, position.checksum)
            if resume_at is not None:
                position = wire.position_of(resume_at)
            else:
                check_known(served, position)
        except Refused as refused:
            yield pb.PrimaryMessage(refusal=refused.refusal)
            return
        begun_bytes = resume_bytes(served.log, position, hello)
        follower = Follower(
            hello.follower_id,
            context.peer(),
            sent_txid=position.txid,
            address=hello.address if member else "",
            candidate=hello.candidate and member,
            identity=str(identity),
            member=member,
        )
        if not hello.observer:
            follower.acknowledged(position.txid, position.txid)
            served.followers.add(follower)
        right = ExitStack()
        held = right.enter_context(
            self._rights.of_call(
                context, identity, Role.REPLICATE, served.database.name, "Stream", partial(_lost, served, follower)
            )
        )
        reading = asyncio.create_task(_read_acks(request_iterator, served, follower))
        reading.add_done_callback(partial(_reading_ended, served, follower))
        # Also of one that calls itself something else each time.
        quiet = hello.observer or self._crowds.due(who, burst=BURST_OF_ONE) is None
        level, name = logging.DEBUG if quiet else logging.INFO, served.database.name
        key, facts = ("connected", name, follower.id), {"database": name, "follower": follower.id, "at": str(position)}
        self._rarely.log(level, "follower connected", key, facts, burst=BURST)
        try:
            yield pb.PrimaryMessage(
                welcome=pb.Welcome(
                    protocol=wire.PROTOCOL_VERSION,
                    term=served.log.term,
                    database=served.database.name,
                    page_size=served.database.page_size,
                    position=wire.position_message(served.log.position, served.log.term),
                    tenure_ms=served.database.tenure.left_ms,
                    history=wire.history_message(served.history),
                    app_url=self._app_url,
                    resume_at=resume_at,
                    resume_bytes=begun_bytes,
                    database_id=served.database.id or "",
                )
            )
            async for message in self._send_from(served, follower, position.txid, begun_bytes):
                held.check()
                yield message
        except Refused as refused:
            yield pb.PrimaryMessage(refusal=refused.refusal)
        finally:
            right.close()
            reading.cancel()
            if not hello.observer:
                served.followers.remove(follower)
            key = "gone", name, follower.id
            gone = {"database": name, "follower": follower.id, "applied_txid": follower.applied_txid}
            self._rarely.log(level, "follower gone", key, gone, burst=BURST)

    async def _send_from(
        self, served: Served, follower: Follower, txid: int, begun_bytes: int = 0
    ) -> AsyncIterator[pb.PrimaryMessage]:
        """Everything after `txid`, but for the first bytes of it, for ever; a heartbeat whenever there was none for a
        while."""
        beat_s = 0.0
        while True:
            now = time.monotonic()
            offer = follower.offer
            if offer is not None and offer.message is not None and not offer.sent:
                offer.sent = True
                yield pb.PrimaryMessage(hand_over=offer.message)
            given = offer is not None and not offer.taken.done()
            if not given:
                served.check_tenure()
            asked = follower.ask_from_txid <= txid
            if asked or now - beat_s >= served.heartbeat_s:
                beat_s = now
                if not given or served.database.tenure.holds:  # else there is no tenure to tell of
                    yield _heartbeat(served, follower, txid)
            if self._stopping.is_set():
                raise Refused(pb.REFUSAL_KIND_STOPPING, "the primary is stopping")
            if served.database.loop.failure:
                raise Refused(pb.REFUSAL_KIND_STOPPING, str(served.database.loop.failure))
            if follower.ended:
                raise Refused(pb.REFUSAL_KIND_STOPPING, follower.ended)
            if served.log.position.txid == txid:
                follower.state = "streaming"
                await served.grown(max(0.0, beat_s + served.heartbeat_s - time.monotonic()))
                continue
            try:
                async for message, reached in _chunks(served, follower, txid, begun_bytes):
                    begun_bytes = 0
                    served.check_tenure()
                    message.chunk.tenure_ms = served.database.tenure.left_ms
                    txid = reached
                    yield message
            except (Corrupt, OSError) as error:
                facts = {"database": served.database.name, "error": str(error)}
                self._rarely.log(logging.ERROR, "cannot read the log", ("log", served.database.name), facts)
                raise Refused(pb.REFUSAL_KIND_LOG_MOVED_ON, f"the log cannot be read: {error}") from error

    # Copy

    async def Copy(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.CopyRequest], context: Context
    ) -> AsyncIterator[pb.CopyReply]:
        """The pages that differ from a copy's."""
        try:
            who, hello = await self._opened(request_iterator, context, check_copy)
        except Refused as refused:
            yield pb.CopyReply(refusal=refused.refusal)
            return
        identity = await self._require(context, Role.REPLICATE, hello.database, "Copy", guess=hello.database_is_guess)
        facts = {"peer": context.peer(), "database": self._name(hello.database, guess=hello.database_is_guess)}
        audit.record("copy", str(identity), **facts, follower=hello.follower_id)
        copying = unless_stalled(self._copied(hello, request_iterator, identity, who), STALL_S)
        held = self._rights.of_call(context, identity, Role.REPLICATE, facts["database"], "Copy")
        try:
            with held as right:
                async with contextlib.aclosing(copying) as replies:
                    async for reply in replies:
                        right.check()
                        yield reply
        except Refused as refused:
            yield pb.CopyReply(refusal=refused.refusal)

    async def _copied(
        self, hello: pb.CopyHello, requests: AsyncIterator[pb.CopyRequest], identity: Identity, who: str
    ) -> AsyncGenerator[pb.CopyReply]:
        served = self._find(hello.protocol, hello.database, identity, guess=hello.database_is_guess)
        check_same_database(served, hello.database_id)
        size = served.database.page_size
        if hello.page_size not in (0, size):
            detail = f"the primary's pages have {size} bytes, the copy's {hello.page_size}"
            raise Refused(pb.REFUSAL_KIND_PAGE_SIZE, detail)
        member = Role.MEMBER in self._gate.roles(identity, served.database.name)
        with self._quotas.copies.take(who, member=member, trusted=identity.kind is Kind.USER):
            if hello.last_mismatched and time.monotonic() - served.rechecked_s > RECHECK_EVERY_S:
                served.rechecked_s = time.monotonic()
                served.database.loop.recheck("a copy did not have the log's checksum")
            try:
                theirs = await _read_checksums(requests, served)
            except (DecodeError, TimeoutError) as error:
                detail = f"no page checksums came: {str(error) or 'it took too long'}"
                raise Refused(pb.REFUSAL_KIND_STOPPING, detail) from error
            async with contextlib.aclosing(copy_pages(served.database, theirs, rounds=hello.takes_rounds)) as replies:
                async for reply in replies:
                    served.check_tenure()
                    yield reply

    # Status and barrier

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:  # noqa: N802
        """What `walcast status` shows, of the databases that the caller may see."""
        identity = self._gate.identify(context)
        shown = visible(self._status(), self._gate.sees(identity))
        if shown is None:
            await self._gate.deny(context, identity, Role.STATUS, "", "Status")
        return shown

    async def Barrier(self, request: pb.BarrierRequest, context: Context) -> pb.BarrierReply:  # noqa: N802
        """A position that covers every commit made before the call, and how many followers have it."""
        try:
            check_barrier(request)
        except Refused as refused:
            return pb.BarrierReply(refusal=refused.refusal)
        identity = await self._require(context, Role.STATUS, request.database, "Barrier")
        member = Role.MEMBER in self._gate.roles(identity, self._name(request.database))
        try:
            served = self._find(wire.PROTOCOL_VERSION, request.database, identity)
            level = _level(request.level)
            trusted = identity.kind is Kind.USER
            with self._quotas.barriers.take(_who(identity, context), member=member, trusted=trusted):
                held = self._rights.of_call(context, identity, Role.STATUS, served.database.name, "Barrier")
                with self._busy(context), held as right:
                    reached = await barrier(served, request.followers, request.timeout_ms / 1000, level)
                right.check()
        except Refused as refused:
            return pb.BarrierReply(refusal=refused.refusal)
        return pb.BarrierReply(
            position=wire.position_message(reached.position, reached.term), followers=reached.followers
        )

    # Changes of role

    async def Switchover(self, request: pb.SwitchoverRequest, context: Context) -> pb.SwitchoverReply:  # noqa: N802
        """Hand the primary's place to a follower."""
        try:
            check_switchover(request)
        except Refused as refused:
            return pb.SwitchoverReply(refusal=refused.refusal)
        identity = await self._require(context, Role.OPERATE, request.database, "Switchover")
        facts = {"peer": context.peer(), "database": request.database, "to": request.to}
        audit.record("switchover asked for", str(identity), **facts)
        try:
            served = self._find(wire.PROTOCOL_VERSION, request.database, identity)
            return await self._within_budget(served, request, identity)
        except Refused as refused:
            return pb.SwitchoverReply(refusal=refused.refusal)

    async def _within_budget(
        self, served: Served, request: pb.SwitchoverRequest, identity: Identity
    ) -> pb.SwitchoverReply:
        """Writers are held no longer than this identity may hold them. Counted to the end, also when whoever asked for
        it has gone: the change goes on."""

        async def change() -> pb.SwitchoverReply:
            wanted_s = request.timeout_ms / 1000 or HOLD_DEFAULT_S
            with self._quotas.holds.hold(
                str(identity), served.database.name, wanted_s, trusted=identity.kind is Kind.USER
            ) as granted_s:
                request.timeout_ms = max(1, int(granted_s * 1000))
                return await served.switchover(request)

        changing = asyncio.create_task(change())
        self._changes.add(changing)
        changing.add_done_callback(self._changes.discard)
        changing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(changing)

    async def StepDown(self, request: pb.StepDownRequest, context: Context) -> pb.StepDownReply:  # noqa: N802
        """Make way for the primary of a higher term, if it proves to be that."""
        try:
            check_step_down(request)
        except Refused as refused:
            return pb.StepDownReply(refusal=refused.refusal)
        identity = await self._require(context, Role.MEMBER, request.database, "StepDown", also=Role.OPERATE)
        asked = {"database": request.database, "term": request.term, "primary": request.primary}
        audit.record("step-down asked for", str(identity), peer=context.peer(), **asked)
        try:
            served = self._find(wire.PROTOCOL_VERSION, request.database, identity)
            return await served.step_down(request)
        except Refused as refused:
            return pb.StepDownReply(refusal=refused.refusal)


def _level(asked: pb.BarrierLevel.ValueType) -> Level:
    level = _LEVELS.get(asked)
    if level is None:
        raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, f"this primary knows no barrier level {asked}: upgrade it")
    return level


def _who(identity: Identity, context: Context) -> str:
    """Whose share of the primary it is: of those who have proven nothing, each address has one."""
    return who_of(context.peer()) if identity.kind is Kind.NOBODY else str(identity)


async def _first_of(requests: AsyncIterator[Any], timeout_s: float) -> Any:
    """The first message of a call; None for one that says nothing, in time, that can be decoded."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(aiter(requests), None)
    except (DecodeError, TimeoutError):
        return None


def _reading_ended(served: Served, follower: Follower, reading: asyncio.Task[None]) -> None:
    """Of a follower that is not heard any more nobody knows how far it is: it has to connect again."""
    error = None if reading.cancelled() else reading.exception()
    if error is not None:
        follower.ended = f"its acknowledgements cannot be read: {type(error).__name__}"
        log.debug("acknowledgements ended", exc_info=error)
        served.wake()


def _lost(served: Served, follower: Follower) -> None:
    """Of whoever may not follow any more nothing counts, from this moment on."""
    follower.member, follower.candidate, follower.address = False, False, ""
    follower.ended = f"{follower.identity} may not follow any more"
    served.wake()


async def _read_checksums(requests: AsyncIterator[pb.CopyRequest], served: Served) -> bytes:
    """The receiver's page checksums; of a longer file than ours nothing more can be the same."""
    checksums = served.log.checksums
    most = 8 * (checksums.commit_pages if checksums else 0)
    theirs = bytearray()
    async with asyncio.timeout(CHECKSUMS_S + most / CHECKSUMS_BYTES_PER_S):
        while True:
            async with asyncio.timeout(SILENT_S):
                request = await anext(aiter(requests), None)
            if request is None:
                break
            if len(theirs) < most:
                theirs += request.checksums
    return bytes(theirs)


async def _read_acks(requests: AsyncIterator[pb.FollowerMessage], served: Served, follower: Follower) -> None:
    pace = Pace(ACKS_PER_S)
    async for message in requests:
        if message.WhichOneof("kind") == "hand_over":
            offer = follower.offer
            if offer is not None and offer.sent and not offer.taken.done():
                offer.taken.set_result(message.hand_over)
            continue
        if not follower.member and (wait_s := pace.wait_s()):
            await asyncio.sleep(wait_s)  # flow control holds back those that come meanwhile
        ack = message.ack
        follower.acknowledged(ack.received_txid, ack.applied_txid, ack.durable_txid, ack.echo_us, ack.lag_us)
        served.followers.progressed()


def _heartbeat(served: Served, follower: Follower, sent_txid: int) -> pb.PrimaryMessage:
    reply, sync = served.followers.ask(follower, sent_txid)
    return pb.PrimaryMessage(
        heartbeat=pb.Heartbeat(
            reply_requested=reply,
            sync_requested=sync,
            look_age_ms=look_age_ms(served),  # before the position: a look that ends in between is in it
            tenure_ms=served.database.tenure.left_ms,
            position=wire.position_message(served.log.position, served.log.term),
            clock_us=time.monotonic_ns() // 1000,
            round_trip_us=follower.round_trip_us,
            behind_bytes=served.log.bytes_after(sent_txid),
        )
    )


async def _chunks(
    served: Served, follower: Follower, txid: int, start: int
) -> AsyncIterator[tuple[pb.PrimaryMessage, int]]:
    """What is in the log after `txid`, from byte `start` of that on, small entries together, big ones in pieces; each
    with the TXID it reaches."""
    transactions = served.log
    pieces: list[bytes] = []
    ends: list[int] = []
    size = 0
    while (entry := transactions.after(txid)) is not None:
        if size and size + entry.size > CHUNK_BYTES:
            break
        last = entry
        while entry.size - start > CHUNK_BYTES:
            yield _chunk(entry.read(start, CHUNK_BYTES), [], 0, served, txid), txid
            start += CHUNK_BYTES
        pieces.append(entry.read(start))
        size += entry.size - start
        start = 0
        ends.append(size)
        txid = entry.max_txid
        follower.sent(txid, entry.captured_ns)
    if not pieces:
        raise Refused(pb.REFUSAL_KIND_LOG_MOVED_ON, f"the log moved on past TXID {txid}", transactions.position)
    captured_ns = last.captured_ns or _captured_before(last)
    if not last.captured_ns:
        follower.sent(txid, captured_ns)
    yield _chunk(b"".join(pieces), ends, captured_ns, served, txid), txid


def _captured_before(entry: Entry) -> int:
    """When an entry from before this process was captured, by the monotonic clock and the word of the wall clock: it is
    not new because this process is."""
    age_ns = max(0, time.time_ns() - entry.header().timestamp_ms * 1_000_000)
    return time.monotonic_ns() - age_ns or -1


def _chunk(data: bytes, ends: list[int], captured_ns: int, served: Served, ended_txid: int) -> pb.PrimaryMessage:
    age_us = max(0, time.monotonic_ns() - captured_ns) // 1000 if captured_ns else 0
    age_us = min(age_us, 0xFFFFFFFF)
    look_ms = look_age_ms(served)  # before the position: a look that ends in between is in it
    newest = served.log.position.txid
    chunk = pb.Chunk(
        data=data,
        ends=ends,
        age_us=age_us,
        position_txid=newest,
        term=served.log.term,
        look_age_ms=look_ms,
        behind_bytes=served.log.bytes_after(ended_txid),
    )
    return pb.PrimaryMessage(chunk=chunk)
