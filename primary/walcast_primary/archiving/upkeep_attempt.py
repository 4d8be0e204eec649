"""A round of an archive's upkeep, whose store may hang: it is left behind then, and sends nothing more.

A thread cannot be ended from outside. What one is left behind with is a call to the store; whenever that comes back,
the round ends, having changed nothing else. What the call itself did is as good as at its time: files have the content
that their names say, and what was to be deleted then may be deleted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from walcast.errors import Unavailable
from walcast.store import Store

STUCK_S = 600.0  # longer than any request takes that is repeated as often as it may be


class GivenUp(Unavailable):
    """The round was left behind."""


class Attempt:
    """One round, in a thread of its own. `release` is called once, when it ends or is left behind."""

    def __init__(self, run: Callable[[Attempt], object], name: str, release: Callable[[], object]) -> None:
        self.duty = "owner"
        self.given_up = False
        self._release = release
        self._released = threading.Lock()
        self._moved_s: float | None = None
        self._thread = threading.Thread(target=run, args=[self], name=name, daemon=True)

    def start(self) -> None:
        """RuntimeError where there are no threads left."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Does the thread run?"""
        return self._thread.is_alive()

    def join(self, wait_s: float) -> None:
        """Until it has ended."""
        self._thread.join(wait_s)

    def check(self) -> None:
        """It gets on. GivenUp when it was left behind."""
        if self.given_up:
            raise GivenUp("the archive's store has not answered for long")
        self._moved_s = time.monotonic()

    @property
    def is_stuck(self) -> bool:
        """Has nothing been heard of it for long? Not while it waits for its turn."""
        return self._moved_s is not None and time.monotonic() - self._moved_s > STUCK_S

    def give_up(self) -> None:
        """Leave it behind."""
        self.given_up = True
        self.release()

    def release(self) -> None:
        """Let another one have the place that it has in the process."""
        if self._moved_s is not None and self._released.acquire(blocking=False):
            self._release()


class _Attended:
    """Wraps a store for one attempt: asked before and after each call, and while something long is read or written."""

    def __init__(self, store: Store, attempt: Attempt) -> None:
        self._store = store
        self._attempt = attempt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._attempt.check()
        data = self._store.get(key, start, length)
        self._attempt.check()
        return data

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        for chunk in self._store.chunks(key, size):
            self._attempt.check()
            yield chunk

    def put(self, key: str, body: BinaryIO | bytes, *, timestamp_ms: int, if_absent: bool = False) -> None:
        self._attempt.check()
        source = body if isinstance(body, bytes) else cast(BinaryIO, _Body(body, self._attempt))
        self._store.put(key, source, timestamp_ms=timestamp_ms, if_absent=if_absent)
        self._attempt.check()

    def delete(self, keys: Any) -> None:
        self._attempt.check()
        self._store.delete(keys)
        self._attempt.check()


class _Body:
    """A stream whose reading shows that an upload gets on."""

    def __init__(self, body: BinaryIO, attempt: Attempt) -> None:
        self._body = body
        self._attempt = attempt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def read(self, size: int = -1) -> bytes:
        self._attempt.check()
        return self._body.read(size)


def attended(store: Store, attempt: Attempt) -> Store:
    """`store`, for as long as the attempt goes on: GivenUp after that."""
    return cast(Store, _Attended(store, attempt))
