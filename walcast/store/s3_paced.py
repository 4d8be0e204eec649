"""No answer of an S3 server may come so slowly that it never ends: a byte now and then keeps every read within its
timeout, and would keep a restore, or a follower that could ask its primary, for days.

Only the time that is spent waiting for the server counts: who takes long to use what came may do so. urllib3 has no
bound for this, so the sockets of botocore's connections are wrapped, and with them heads and bodies alike.
"""

from __future__ import annotations

import io
import time
from typing import Any

LEAST_BYTES = 64 << 10  # must come ...
WINDOWS = 2  # ... in so many times as long as a single read may take; a shorter answer as a whole


class PacedReader(io.RawIOBase):
    """What a socket brings, as long as it gets on. TimeoutError when it does not."""

    def __init__(self, raw: Any, patience_s: float) -> None:
        self._raw = raw
        self._patience_s = patience_s
        self._waited_s = 0.0
        self._came = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began_s = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._waited_s += time.monotonic() - began_s
        self._came += count or 0
        if self._came >= LEAST_BYTES:
            self._waited_s, self._came = 0.0, 0
        elif count and self._waited_s > self._patience_s:
            raise TimeoutError(f"only {self._came:,} bytes came in {self._waited_s:.0f} s")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedSocket:
    """A socket whose files are paced; all else is the socket's own."""

    def __init__(self, socket: Any, patience_s: float) -> None:
        self._socket = socket
        self._patience_s = patience_s

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        """For one answer, to be read."""
        return io.BufferedReader(PacedReader(self._socket.makefile(mode, buffering=0), self._patience_s))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def pace(session: Any, read_s: float) -> None:
    """Have all connections of a botocore HTTP session paced; a single read may take `read_s`."""
    pools = session._pool_classes_by_scheme
    pools.update({scheme: _paced_pool(pool, WINDOWS * read_s) for scheme, pool in pools.items()})


def _paced_pool(pool: Any, patience_s: float) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            self.sock: Any = _PacedSocket(self.sock, patience_s)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})
