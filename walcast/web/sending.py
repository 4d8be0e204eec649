"""Requests to the primary's app from threads: connections that are kept for a moment, by process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Protocol

import httpcore

from walcast.redaction import redact
from walcast.web.deadline import DeadlineBackend, no_longer_than
from walcast.web.forwarding import (
    FAILED,
    KEEP_ALIVE_S,
    NOT_SENT,
    BadRequest,
    ClientGone,
    Head,
    MaybeSent,
    NotSent,
    is_answer,
    no_room,
    request_to,
    tls_context,
    too_large,
)
from walcast.web.options import Options
from walcast.web.spool import CHUNK_BYTES, Budget, NoRoom, Spool


class Input(Protocol):
    """What of `wsgi.input` is used."""

    def read(self, size: int = ..., /) -> bytes: ...


class Body:
    """A request's body: all of it is read when it is first asked for, and it can be sent again."""

    def __init__(self, stream: Input, length: int | None, most: int, until: float, budget: Budget) -> None:
        """`length` bytes, None: not known; `most` bytes at most, and no longer than `until` on the monotonic clock;
        what is long takes of `budget`."""
        self.until = until
        self._stream = stream
        self._left = length
        self._most = most
        self._spool = Spool(budget)

    @property
    def size(self) -> int:
        """Of what was read."""
        return self._spool.size

    @property
    def sha256(self) -> str:
        """Of what was read."""
        return self._spool.sha256

    def fill(self) -> None:
        """Read all of it. BadRequest, ClientGone."""
        while self._left != 0:
            self._read()

    def __iter__(self) -> Iterator[bytes]:
        """All of it, from its beginning."""
        self.fill()
        return self._spool.chunks()

    def _read(self) -> None:
        if time.monotonic() > self.until:
            raise BadRequest(408, "the body takes too long")
        try:
            chunk = self._stream.read(CHUNK_BYTES if self._left is None else min(CHUNK_BYTES, self._left))
        except (OSError, ValueError) as error:
            raise ClientGone(str(error)) from error
        if self._left is not None:
            if not chunk:
                raise ClientGone("the body ended early")
            self._left -= len(chunk)
        elif not chunk:
            self._left = 0
        if self._spool.size + len(chunk) > self._most:
            raise too_large(self._most)
        try:
            self._spool.add(chunk)
        except NoRoom as error:
            raise no_room(error) from error

    def for_the_app(self) -> Input:
        """What an app here reads: what was read already, and nothing after it."""
        if not self._spool.size and self._left != 0:
            return self._stream
        return self._spool.rewound()


class Sender:
    """For all threads of a process; a forked one has connections of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pools: dict[int, httpcore.ConnectionPool] = {}

    def send(self, url: str, head: Head, body: Body) -> httpcore.Response:
        """The answer, whose body is still to be read, and which must be closed. NotSent, MaybeSent, ClientGone,
        BadRequest."""
        body.fill()
        request = request_to(url, head, body, body.size, body.sha256, time.time(), self._options)
        try:
            with no_longer_than(body.until):
                response = self._pool().handle_request(request)
        except httpcore.LocalProtocolError as error:
            raise BadRequest(400, "not a request that can be sent on") from error
        except NOT_SENT as error:
            raise NotSent(f"{url}: {error}") from error
        except FAILED as error:
            raise MaybeSent(f"{url}: {type(error).__name__} {redact(str(error))}") from error
        if not is_answer(response.status):
            response.close()
            raise MaybeSent(f"{url}: it answers with status {response.status}")
        return response

    def close(self) -> None:
        """The connections of this process."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()

    def _pool(self) -> httpcore.ConnectionPool:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            most = self._options.max_connections
            made = httpcore.ConnectionPool(
                ssl_context=tls_context(self._options),
                max_connections=most,
                keepalive_expiry=KEEP_ALIVE_S,
                network_backend=DeadlineBackend(),
            )
            pool = self._pools.setdefault(pid, made)
        return pool
