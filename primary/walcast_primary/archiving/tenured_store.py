"""A store that changes nothing unless the node may act as the primary now.

Asked before every change, and while a long upload is read: a process that was stopped, and wakes up after another took
its place, sends not one byte more than what the kernel already had.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO, cast

from walcast.store import Store
from walcast_primary.tenure import Tenure


class _Tenured:
    """Wraps a store; reading needs no tenure."""

    def __init__(self, store: Store, tenure: Tenure) -> None:
        self._store = store
        self._tenure = tenure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: BinaryIO | bytes, *, timestamp_ms: int, if_absent: bool = False) -> None:
        self._tenure.check()
        source = body if isinstance(body, bytes) else cast(BinaryIO, _Body(body, self._tenure))
        self._store.put(key, source, timestamp_ms=timestamp_ms, if_absent=if_absent)

    def delete(self, keys: Iterable[str]) -> None:
        self._tenure.check()
        self._store.delete(keys)

    def tidy(self) -> None:
        self._tenure.check()
        self._store.tidy()


class _Body:
    """A stream that ends with an error when the tenure does."""

    def __init__(self, body: BinaryIO, tenure: Tenure) -> None:
        self._body = body
        self._tenure = tenure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def read(self, size: int = -1) -> bytes:
        self._tenure.check()
        return self._body.read(size)


def tenured(store: Store, tenure: Tenure) -> Store:
    """`store`, for as long as `tenure` holds: Stopped after that."""
    return cast(Store, _Tenured(store, tenure))
