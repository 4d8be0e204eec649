"""Requests to the primary's app from event loops: connections that are kept for a moment, by loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import httpcore

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
    request_to,
    tls_context,
    too_large,
)
from walcast.web.options import Options

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]


class Kept:
    """What an app receives, kept while it is short, so that it can be sent on once the app has received it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._taken = 0

    async def receive(self) -> Message:
        """For the app."""
        message = await self._receive()
        self._taken += len(message.get("body", b""))
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
    """A request's body, received when it is asked for, and kept while it is short, so that it can be sent again."""

    def __init__(self, receive: Receive, length: int | None, most: int, silence_s: float, until: float) -> None:
        """`length` bytes, None: not known; `most` at most. No silence longer than `silence_s`, and no longer than
        `until` on the monotonic clock."""
        self.until = until
        self._receive = receive
        self._length = length
        self._most = most
        self._silence_s = silence_s
        self._taken = 0
        self._ended = length == 0  # then an app that was asked before may have received its end
        self._kept: list[bytes] | None = []

    @property
    def is_whole(self) -> bool:
        """Has nothing of it been let go?"""
        return self._kept is not None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """From its beginning: only while it is whole."""
        assert self._kept is not None
        for chunk in list(self._kept):
            yield chunk
        while not self._ended:
            chunk = await self._read()
            if chunk:
                yield chunk

    async def _read(self) -> bytes:
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
        self._taken += len(chunk)
        if self._taken > self._most:
            raise too_large(self._most)
        if self._length is not None and (self._taken > self._length or (self._ended and self._taken < self._length)):
            raise BadRequest(400, "the body has not the length that was said")
        if self._kept is not None:
            self._kept.append(chunk)
            if self._taken > REPLAY_BYTES:
                self._kept = None
        return chunk

    def for_the_app(self) -> Receive:
        """What an app here receives: what was taken already, then the rest."""
        if not self._taken and not self._ended:
            return self._receive
        taken: list[Message] = []
        if self._kept is not None:
            taken = [{"type": "http.request", "body": b"".join(self._kept), "more_body": not self._ended}]

        async def receive() -> Message:
            return taken.pop() if taken else await self._receive()

        return receive

    async def wait_until_gone(self) -> None:
        """Until the client has hung up; once the body was sent on."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class AsyncSender:
    """Every event loop has connections of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, httpcore.AsyncConnectionPool] = WeakKeyDictionary()

    async def send(self, url: str, head: Head, body: AsyncBody) -> httpcore.Response:
        """The answer, whose body is still to be read, and which must be closed. NotSent, MaybeSent, ClientGone,
        BadRequest."""
        request = request_to(url, head, body, time.time(), self._options)
        try:
            async with asyncio.timeout(body.until - time.monotonic()):
                response = await self._pool().handle_async_request(request)
        except httpcore.LocalProtocolError as error:
            raise BadRequest(400, "not a request that can be sent on") from error
        except NOT_SENT as error:
            raise NotSent(f"{url}: {error}") from error
        except (*FAILED, TimeoutError) as error:
            raise MaybeSent(f"{url}: {type(error).__name__} {error}") from error
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
            )
        return pool
