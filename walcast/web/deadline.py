"""An end to all of a request, however little there is at a time: connections whose single waits never last beyond it.

httpcore bounds the silence of the other side. Who sends a byte now and then is never silent.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore

from walcast.web.forwarding import never_used

# Of what the thread, or greenlet, does now; on the monotonic clock.
_until_s: ContextVar[float] = ContextVar("walcast.web.until_s", default=math.inf)


@contextmanager
def no_longer_than(until_s: float) -> Iterator[None]:
    """What is read and written inside ends by then, as a timeout."""
    token = _until_s.set(until_s)
    try:
        yield
    finally:
        _until_s.reset(token)


class DeadlineBackend(httpcore.SyncBackend):
    """Connections of which that is true."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """As httpcore's; not to what is never an app of another host."""
        stream = super().connect_tcp(host, port, timeout, local_address, socket_options)
        why = never_used(stream)
        if why:
            stream.close()
            raise httpcore.ConnectError(why)
        return _Stream(stream)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left_s = _until_s.get() - time.monotonic()
        if left_s <= 0:
            raise httpcore.ReadTimeout("it takes too long")
        return self._stream.read(max_bytes, _less(timeout, left_s))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left_s = _until_s.get() - time.monotonic()
        if left_s <= 0:
            raise httpcore.WriteTimeout("it takes too long")
        self._stream.write(buffer, _less(timeout, left_s))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _less(timeout: float | None, left_s: float) -> float | None:
    if timeout is None:
        return None if left_s == math.inf else left_s
    return min(timeout, left_s)
