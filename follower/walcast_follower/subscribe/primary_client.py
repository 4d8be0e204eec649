"""The follower's end of the wire: calls with bounded waits, refusals and gRPC's errors translated at the border."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from walcast import wire
from walcast.access.credentials import Credentials
from walcast.errors import ConfigError, ProtocolViolation, Unavailable, WalcastError
from walcast.identifiers import check_identifier, printable
from walcast.identity import OtherDatabase, parse_database_id
from walcast.lasting import outlast
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.terms import TermStart
from walcast_follower.subscribe.message_checks import (
    check_copy_start,
    check_history,
    check_message,
    check_resumed_bytes,
    check_seen_term,
    check_welcome,
    said_by,
)
from walcast_follower.subscribe.partial_transaction import NOTHING, Begun

RECEIVE_MAX_BYTES = 1 << 20  # a message of a primary; the largest that one sends has a third of that
SILENCE_S = 10.0
DRAIN_S = 1.0
CHECKSUM_PIECE_BYTES = 32 << 10  # a primary takes no request of more than 64 KiB
PAGE_SIZES = frozenset(1 << power for power in range(9, 17))  # SQLite's: 512 to 65536

_OTHER = pb.REFUSAL_KIND_OTHER_DATABASE
_FINAL = (pb.REFUSAL_KIND_PROTOCOL_VERSION, pb.REFUSAL_KIND_UNKNOWN_DATABASE)
_ELSEWHERE = (pb.REFUSAL_KIND_NOT_PRIMARY, pb.REFUSAL_KIND_FENCED, pb.REFUSAL_KIND_OLDER_TERM)
_COPY = (pb.REFUSAL_KIND_LOG_MOVED_ON, pb.REFUSAL_KIND_DIVERGED)


def _unchecked() -> None:
    """Of a channel whose other end is known."""


class _Once:
    """A check that is not made again once it has passed."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __call__(self) -> None:
        self._check()
        self._check = _unchecked


def _answered_by(primary: wire.Address, credentials: Credentials | None) -> _Once:
    """Before the first thing that a primary says is believed, refusals among them."""
    return _Once(partial(credentials.check_answered, primary) if credentials else _unchecked)


class MustCopy(WalcastError):
    """The primary cannot go on from the replica's position; `diverged` tells that it never had it, `history` where its
    terms began."""

    def __init__(self, refusal: pb.Refusal, history: tuple[TermStart, ...] = ()) -> None:
        super().__init__(printable(refusal.detail))
        self.diverged = refusal.kind == pb.REFUSAL_KIND_DIVERGED
        self.history = history


class OtherPageSize(WalcastError):
    """The primary's database has pages of another size than the replica: no page of it can be used."""


class Elsewhere(Unavailable):
    """This node is not the primary; `primary` is where it is, "" when the node does not know."""

    def __init__(self, message: str, primary: str) -> None:
        super().__init__(message)
        self.primary = primary


def refused(refusal: pb.Refusal, primary: wire.Address, seen_term: int = 0) -> WalcastError:
    """What a refusal means for a follower that knows of `seen_term`; ProtocolViolation when it names what cannot be."""
    detail = f"{primary}: {printable(refusal.detail)}"
    try:
        if refusal.kind in _COPY:
            newest_term = max((begun.term for begun in refusal.history), default=0)
            check_seen_term(newest_term, seen_term)
            return MustCopy(refusal, check_history(refusal.history, newest_term))
        if refusal.kind in _ELSEWHERE:
            return Elsewhere(detail, check_identifier("primary's address", refusal.primary, optional=True))
    except ProtocolViolation as error:
        return ProtocolViolation(f"{primary}: {error}")
    if refusal.kind == _OTHER:
        return OtherDatabase(detail)
    if refusal.kind == pb.REFUSAL_KIND_PAGE_SIZE:
        return OtherPageSize(detail)
    if refusal.kind in _FINAL:
        return ConfigError(detail)
    return Unavailable(detail)


def check_term(primary: wire.Address, term: int, seen: int) -> None:
    """Elsewhere when a primary is of an older term than one that was seen: it was deposed, and may not know."""
    if term < seen:
        raise Elsewhere(f"{primary}: its term is {term}, and term {seen} has begun", "")


def _check_resumed(primary: wire.Address, welcome: pb.Welcome, checksum: int) -> None:
    """The name that a primary gives to a state: of this state, and one that it can have."""
    named = welcome.resume_at
    known = 0 < named.txid <= welcome.position.txid and named.term <= welcome.term
    if not known or named.checksum != checksum:
        position = wire.position_of(named)
        raise ProtocolViolation(
            f"{primary}: named a state with the checksum {checksum:016x} {position}, which it cannot be"
        )


def check_database(primary: wire.Address, name: str, theirs: str, mine: str) -> None:
    """OtherDatabase when the primary's database is not the one that the replica is a copy of: whether the primary
    compares the two is its business. Unavailable for what is no id at all. Empty: not known."""
    if not theirs:
        return
    try:
        parse_database_id(theirs)
    except ValueError as error:
        raise ProtocolViolation(f"{primary}: the database {name!r}: {error}") from error
    if mine and mine != theirs:
        message = f"{primary}: the database {name!r} has the id {theirs} there, not {mine}"
        raise OtherDatabase(message, mine=mine, theirs=theirs)


class Client:
    """One primary, reached over one channel."""

    def __init__(
        self,
        primary: wire.Address,
        tls: wire.Tls | Credentials,
        *,
        database: str,
        follower_id: str,
        guess: bool = False,
        address: str = "",
        candidate: bool = False,
    ) -> None:
        """`guess`: nobody gave the database's name; if the primary has only one, that is meant. `address` is where this
        follower would serve as the primary; a `candidate` takes its place by itself."""
        self.primary = primary
        self.database = database
        self.follower_id = follower_id
        self.database_id = ""  # of what the replica is a copy of; empty: of nothing yet, or nobody knows
        self._hello = pb.Hello(
            protocol=wire.PROTOCOL_VERSION,
            database=database,
            follower_id=follower_id,
            database_is_guess=guess,
            address=address,
            candidate=candidate,
        )
        self._credentials = Credentials.of(tls)
        credentials = self._credentials.channel(primary)
        self._version = self._credentials.version
        target = str(primary)
        # Reconnecting is paced here, not by gRPC: after a failure the next try must not wait for its back-off.
        bounded = [(name, value) for name, value in primary.options if name != wire.MAX_RECEIVE]
        options = [
            *bounded,
            (wire.MAX_RECEIVE, RECEIVE_MAX_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),  # else a new channel gets the connection of the one before
        ]

        def open_channel() -> grpc.aio.Channel:
            if credentials:
                return grpc.aio.secure_channel(target, credentials, options=options)
            return grpc.aio.insecure_channel(target, options=options)

        self._open_channel = open_channel
        self._channel = open_channel()
        self._stub: Any = rpc.ReplicationStub(self._channel)

    @property
    def is_outdated(self) -> bool:
        """Have the certificates been changed since the channel was opened?"""
        return self._credentials.version != self._version

    async def renew(self) -> None:
        """Go on over another connection. A byte of a header that was damaged on its way stays in the table that HTTP/2
        keeps for a connection, and every later call over it would fail."""
        old, self._channel = self._channel, self._open_channel()
        self._stub = rpc.ReplicationStub(self._channel)
        await old.close(None)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(None)

    @asynccontextmanager
    async def stream(
        self, position: Position, term: int, *, observer: bool = False, begun: Begun = NOTHING
    ) -> AsyncIterator[Stream]:
        """Everything after `position`; an `observer` is no replica that is there already. Of a state without a name the
        position has the checksum alone; `welcome.resume_at` then is a position with it. `begun`: the first bytes are
        here already, and `welcome.resume_bytes` says whether the stream begins behind them.

        MustCopy, Unavailable or ConfigError when the primary refuses; OtherDatabase, one of the latter, also when its
        database has another id than `database_id`.
        """
        call = self._stub.Stream(metadata=self._credentials.present(self.primary))
        stream = Stream(call, self.primary, term, self._credentials)
        try:
            with _translated(self.primary, self._credentials):
                hello = pb.Hello()
                hello.CopyFrom(self._hello)
                hello.observer = observer
                hello.database_id = self.database_id
                hello.partial_header, hello.partial_bytes = begun
                hello.position.CopyFrom(wire.position_message(position, term))
                await _write(call, pb.FollowerMessage(hello=hello))
            welcome = await stream.read()
            if welcome.WhichOneof("kind") != "welcome":
                raise Unavailable(f"{self.primary}: did not begin with a welcome")
            stream.welcome = welcome.welcome
            with said_by(self.primary):
                check_welcome(stream.welcome, term)
                check_resumed_bytes(stream.welcome, begun.size)
            check_database(self.primary, stream.welcome.database, stream.welcome.database_id, self.database_id)
            check_term(self.primary, stream.welcome.term, term)
            if not position.txid and position.checksum:
                _check_resumed(self.primary, stream.welcome, position.checksum)
            stream.lasts(welcome.welcome.tenure_ms)
            yield stream
        finally:
            stream.close()

    @asynccontextmanager
    async def copy(
        self,
        page_size: int,
        checksums: NDArray[np.uint64] | None,
        *,
        term: int = 0,
        last_mismatched: bool = False,
        rounds: bool = False,
    ) -> AsyncIterator[Copy]:
        """The pages that differ from a replica's; the primary keeps its log for us as long as this is open. `term`:
        the newest one that was seen. `rounds`: more starts may come before the end, each with the pages that have
        changed since.

        `last_mismatched` tells it that the copy before did not have the checksum that the log says.
        """
        call = self._stub.Copy(metadata=self._credentials.present(self.primary))
        try:
            with _translated(self.primary, self._credentials):
                hello = pb.CopyHello(
                    protocol=wire.PROTOCOL_VERSION,
                    database=self._hello.database,
                    follower_id=self._hello.follower_id,
                    page_size=page_size,
                    database_is_guess=self._hello.database_is_guess,
                    last_mismatched=last_mismatched,
                    takes_rounds=rounds,
                    database_id=self.database_id,
                )
                await _write(call, pb.CopyRequest(hello=hello))
                data = b"" if checksums is None else checksums.astype("<u8").tobytes()
                for start in range(0, len(data), CHECKSUM_PIECE_BYTES):
                    await _write(call, pb.CopyRequest(checksums=data[start : start + CHECKSUM_PIECE_BYTES]))
                await call.done_writing()
            copy = Copy(call, self.primary, term, self._credentials)
            first = await copy.read()
            if first.WhichOneof("kind") != "start":
                raise Unavailable(f"{self.primary}: the copy did not begin with a start")
            copy.start = first.start
            check_database(self.primary, self.database, copy.start.database_id, self.database_id)
            with said_by(self.primary):
                check_copy_start(copy.start, page_size, term)
            check_term(self.primary, copy.start.position.term, term)
            yield copy
        finally:
            call.cancel()


class Stream:
    """An open stream: messages in, acknowledgements out."""

    def __init__(
        self, call: Any, primary: wire.Address, seen_term: int = 0, credentials: Credentials | None = None
    ) -> None:
        self.welcome = pb.Welcome()
        self.began_s = _clock_s()
        self._call = call
        self._primary = primary
        self._credentials = credentials or Credentials(wire.Tls())
        self._seen_term = seen_term
        self._check_once = _answered_by(primary, credentials)
        self._writing = asyncio.Lock()
        self._reading_since_s = math.inf
        self._ended: str | WalcastError = ""
        self._tenure_until_s = math.inf
        self._watching: asyncio.Task[None] | None = asyncio.create_task(outlast(self._watch, str(primary), "stream"))

    async def _watch(self) -> None:
        """End the call when nothing comes for too long: cheaper than a timeout around every read."""
        while time.monotonic() - self._reading_since_s < SILENCE_S:
            await asyncio.sleep(SILENCE_S / 10)
        self.leave(f"silent for {SILENCE_S:.0f} s")

    def leave(self, why: str | WalcastError) -> None:
        """End the stream: whoever reads it gets the error, or Unavailable."""
        self._ended = why
        if self._call is not None:
            self._call.cancel()

    @property
    def silent_s(self) -> float:
        """For how long a message has been waited for."""
        return max(0.0, time.monotonic() - self._reading_since_s)

    def lasts(self, tenure_ms: int) -> None:
        """The primary may act for so long at least, as it says; 0: without end. What comes later than that it may have
        sent before it was stopped and another took its place: nothing is taken until it has been asked again."""
        self._tenure_until_s = _clock_s() + tenure_ms / 1000 if tenure_ms else math.inf

    def close(self) -> None:
        """End the stream. Task and call are let go of: what refers to them in a cycle, as the task's CancelledError
        does, would keep the connection of a closed channel until the garbage collector comes by."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _open_call(self) -> Any:
        if self._call is None:
            raise Unavailable(f"{self._primary}: the stream was closed")
        return self._call

    async def read(self) -> pb.PrimaryMessage:
        """The next message. A silence longer than several heartbeats is Unavailable."""
        self._reading_since_s = time.monotonic()
        try:
            message: pb.PrimaryMessage = await _next(self._open_call(), self._primary, self._credentials)
        except ConfigError:  # final, if it comes from whom it should
            self._check_once()
            raise
        except (asyncio.CancelledError, Unavailable):
            task = asyncio.current_task()
            if self._ended and not (task and task.cancelling()):
                if isinstance(self._ended, WalcastError):
                    raise self._ended from None
                raise Unavailable(f"{self._primary}: {self._ended}") from None
            raise
        self._reading_since_s = math.inf
        self._check_once()
        if message.WhichOneof("kind") == "refusal":
            raise refused(message.refusal, self._primary, self._seen_term)
        with said_by(self._primary):
            check_message(message, self.welcome.term)
        if _clock_s() > self._tenure_until_s:
            raise Unavailable(f"{self._primary}: its tenure may be over")
        kind = message.WhichOneof("kind")
        if kind == "heartbeat":
            self.lasts(message.heartbeat.tenure_ms)
        elif kind == "chunk":
            check_term(self._primary, message.chunk.term, self.welcome.term)
            self.lasts(message.chunk.tenure_ms)
        return message

    async def drain(self) -> None:
        """Until the other side has ended the call, so that what was written has arrived; bounded."""
        with contextlib.suppress(TimeoutError, WalcastError):
            async with asyncio.timeout(DRAIN_S):
                while True:
                    await _next(self._open_call(), self._primary, self._credentials)

    async def answer(self, reply: pb.HandOverReply) -> None:
        """To the offer of the primary's place."""
        async with self._writing:
            with _translated(self._primary, self._credentials):
                await _write(self._open_call(), pb.FollowerMessage(hand_over=reply))

    async def acknowledge(self, ack: pb.Ack) -> None:
        """Tell the primary how far this replica is."""
        async with self._writing:  # gRPC takes one write at a time
            with _translated(self._primary, self._credentials):
                await _write(self._open_call(), pb.FollowerMessage(ack=ack))


class Copy:
    """An open copy."""

    def __init__(
        self, call: Any, primary: wire.Address, seen_term: int = 0, credentials: Credentials | None = None
    ) -> None:
        self.start = pb.CopyStart()
        self._seen_term = seen_term
        self._call = call
        self._primary = primary
        self._credentials = credentials or Credentials(wire.Tls())
        self._check_once = _answered_by(primary, credentials)

    async def read(self) -> pb.CopyReply:
        """The next message."""
        try:
            message: pb.CopyReply = await _read(self._call, self._primary, self._credentials)
        except ConfigError:
            self._check_once()
            raise
        self._check_once()
        if message.WhichOneof("kind") == "refusal":
            raise refused(message.refusal, self._primary, self._seen_term)
        return message


def clock_us() -> int:
    """For times of messages."""
    return int(_clock_s() * 1e6)


def _clock_s() -> float:
    """It also counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def _read(call: Any, primary: wire.Address, credentials: Credentials) -> Any:
    try:
        async with asyncio.timeout(SILENCE_S):
            return await _next(call, primary, credentials)
    except TimeoutError:
        raise Unavailable(f"{primary}: silent for {SILENCE_S:.0f} s") from None


async def _write(call: Any, message: Any) -> None:
    """Bounded: a primary that hangs keeps its connection alive, but takes no more than its window."""
    async with asyncio.timeout(SILENCE_S):
        await call.write(message)


async def _next(call: Any, primary: wire.Address, credentials: Credentials) -> Any:
    with _translated(primary, credentials):
        message = await call.read()
    if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
        code, details = await call.code(), await call.details()
        if code is grpc.StatusCode.OK:
            raise Unavailable(f"{primary}: ended the call")
        raise Unavailable(credentials.failure(primary, code.name, details))
    if message is None:  # gRPC's answer for bytes that are no message of this call
        raise Unavailable(f"{primary}: sent what cannot be decoded")
    return message


class _translated:  # noqa: N801 - reads as a statement
    """gRPC's errors → ours."""

    def __init__(self, primary: wire.Address, credentials: Credentials) -> None:
        self._primary = primary
        self._credentials = credentials

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, grpc.aio.AioRpcError):
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ConfigError(f"{self._primary}: not a walcast primary") from error
            raise Unavailable(self._credentials.failure(self._primary, error.code().name, error.details())) from error
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{self._primary}: takes nothing for {SILENCE_S:.0f} s") from error
        if isinstance(error, grpc.aio.UsageError | asyncio.InvalidStateError):
            raise Unavailable(f"{self._primary}: the call has ended") from error
