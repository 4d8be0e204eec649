"""Requests to the primary's app from event loops: connections that are kept for a moment, by loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import httpcore

from walcast.redaction import redact
from walcast.web.forwarding import (
    FAILED,
    KEEP_ALIVE_S,
    NOT_SENT,
    REPLAY_BYTES,
    BadRequest,
    ClientGone,
    Head,
    MaybeSent,
    NotSent,
    is_answer,
    never_used,
    no_room,
    request_to,
    tls_context,
    too_large,
)
from walcast.web.options import Options
from walcast.web.spool import Budget, NoRoom, Spool

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
T = TypeVar("T")

MESSAGE_BYTES = 256  # of memory, at least, for one that is kept, whatever it brings


class Kept:
    """What an app receives, kept while it is short, so that it can be sent on once the app has received it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._taken = 0

    async def receive(self) -> Message:
        """For the app."""
        message = await self._receive()
        self._taken += len(message.get("body", b"")) + MESSAGE_BYTES
        if self._taken > REPLAY_BYTES or message["type"] != "http.request":
            self._messages.clear()
            self._taken = REPLAY_BYTES + 1  # for good
        else:
            self._messages.append(message)
        return message

    def again(self) -> Receive | None:
        """From its beginning; None when that is not there any more."""
        if self._taken > REPLAY_BYTES:
            return None
        coming = iter(self._messages)

        async def receive() -> Message:
            for message in coming:
                return message
            return await self._receive()

        return receive


class AsyncBody:
    """A request's body: all of it is received when it is first asked for, and it can be sent again."""

    def __init__(
        self, receive: Receive, length: int | None, most: int, silence_s: float, until: float, budget: Budget
    ) -> None:
        """`length` bytes, None: not known; `most` at most. No silence longer than `silence_s`, and no longer than
        `until` on the monotonic clock. What is long takes of `budget`."""
        self.until = until
        self._receive = receive
        self._length = length
        self._most = most
        self._silence_s = silence_s
        self._ended = length == 0  # then an app that was asked before may have received its end
        self._spool = Spool(budget)

    @property
    def size(self) -> int:
        """Of what was received."""
        return self._spool.size

    @property
    def sha256(self) -> str:
        """Of what was received."""
        return self._spool.sha256

    async def fill(self) -> None:
        """Receive all of it. BadRequest, ClientGone."""
        while not self._ended:
            await self._read()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """All of it, from its beginning."""
        await self.fill()
        chunks = self._spool.chunks()
        while chunk := await self._aside(lambda: next(chunks, b"")):
            yield chunk

    async def _read(self) -> None:
        left = min(self._silence_s, self.until - time.monotonic())
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError:
            raise BadRequest(408, "the body takes too long") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("it hung up")
        chunk: bytes = message.get("body", b"")
        self._ended = not message.get("more_body", False)
        size = self._spool.size + len(chunk)
        if size > self._most:
            raise too_large(self._most)
        if self._length is not None and (size > self._length or (self._ended and size < self._length)):
            raise BadRequest(400, "the body has not the length that was said")
        try:
            await self._aside(lambda: self._spool.add(chunk), self._spool.will_be_on_disk(chunk))
        except NoRoom as error:
            raise no_room(error) from error

    async def _aside(self, call: Callable[[], T], on_disk: bool = False) -> T:
        """In a thread, where a disk may take its time."""
        if on_disk or self._spool.is_on_disk:
            return await asyncio.to_thread(call)
        return call()

    def for_the_app(self) -> Receive:
        """What an app here receives: what was received already, then what comes after it."""
        if not self._ended:
            assert not self._spool.size
            return self._receive
        chunks = self._spool.chunks()
        over = False

        async def receive() -> Message:
            nonlocal over
            if over:
                return await self._receive()
            chunk = await self._aside(lambda: next(chunks, b""))
            over = not chunk
            return {"type": "http.request", "body": chunk, "more_body": not over}

        return receive

    async def wait_until_gone(self) -> None:
        """Until the client has hung up; once the body was sent on."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Backend(httpcore.AnyIOBackend):
    """Connections that do not lead to what is never an app of another host."""

    async def connect_tcp(self, *arguments: Any, **keywords: Any) -> httpcore.AsyncNetworkStream:
        """As httpcore's."""
        stream = await super().connect_tcp(*arguments, **keywords)
        why = never_used(stream)
        if why:
            await stream.aclose()
            raise httpcore.ConnectError(why)
        return stream


class AsyncSender:
    """Every event loop has connections of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, httpcore.AsyncConnectionPool] = WeakKeyDictionary()

    async def send(self, url: str, head: Head, body: AsyncBody) -> httpcore.Response:
        """The answer, whose body is still to be read, and which must be closed. NotSent, MaybeSent, ClientGone,
        BadRequest."""
        await body.fill()
        request = request_to(url, head, body, body.size, body.sha256, time.time(), self._options)
        try:
            async with asyncio.timeout(body.until - time.monotonic()):
                response = await self._pool().handle_async_request(request)
        except httpcore.LocalProtocolError as error:
            raise BadRequest(400, "not a request that can be sent on") from error
        except NOT_SENT as error:
            raise NotSent(f"{url}: {error}") from error
        except (*FAILED, TimeoutError) as error:
            raise MaybeSent(f"{url}: {type(error).__name__} {redact(str(error))}") from error
        if not is_answer(response.status):
            await response.aclose()
            raise MaybeSent(f"{url}: it answers with status {response.status}")
        return response

    async def close(self) -> None:
        """The connections of this loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def _pool(self) -> httpcore.AsyncConnectionPool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = httpcore.AsyncConnectionPool(
                ssl_context=tls_context(self._options),
                max_connections=self._options.max_connections,
                keepalive_expiry=KEEP_ALIVE_S,
                network_backend=_Backend(),
            )
        return pool
