"""A request's body, whole: in memory while it is short, else in a temporary file without a name.

The proof of a forwarded request covers its body and goes before it, so an edge has all of a body before it sends any,
and the primary has checked all of it before its app reads any. It is as proxies do it that buffer requests: a client
that is slow holds a worker of the edge only, and what was sent in vain can be sent again.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

MEMORY_BYTES = 64 << 10
CHUNK_BYTES = 64 << 10
EMPTY_SHA256 = hashlib.sha256().hexdigest()


class NoRoom(Exception):
    """The temporary files have no more room, or may take no more."""


@dataclass(slots=True)
class Share:
    """What one body has taken of a budget: a number, however small the pieces were that it came in."""

    bytes: int = 0


class Budget:
    """Bytes of temporary files for all requests of a process, `most` at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Now."""
        return self._taken

    def take(self, size: int, share: Share) -> None:
        """NoRoom when there are not so many left."""
        with self._lock:
            if self._taken + size > self._most:
                raise NoRoom(f"the bodies that are kept would take more than {self._most} bytes (max_spooled)")
            self._taken += size
            share.bytes += size

    def give_back(self, share: Share) -> None:
        """What `take` took."""
        with self._lock:
            self._taken -= share.bytes
            share.bytes = 0


class Spool:
    """Written once, then read as often as is wanted. What it takes is given back when nobody has it any more."""

    def __init__(self, budget: Budget) -> None:
        self.size = 0
        self._budget = budget
        self._taken = Share()
        self._digest = hashlib.sha256()
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - closed by its end
        weakref.finalize(self, _end, self._file, budget, self._taken)

    @property
    def sha256(self) -> str:
        """Of all that was added, in hex."""
        return self._digest.hexdigest()

    @property
    def is_on_disk(self) -> bool:
        """Does reading and writing it take its time?"""
        return bool(self._taken.bytes)

    def will_be_on_disk(self, chunk: bytes) -> bool:
        """Once this is added, too."""
        return self.size + len(chunk) > MEMORY_BYTES

    def add(self, chunk: bytes) -> None:
        """NoRoom."""
        more = len(chunk) if self._taken.bytes else self.size + len(chunk) if self.will_be_on_disk(chunk) else 0
        if more:
            self._budget.take(more, self._taken)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise NoRoom(f"a body cannot be kept in a temporary file: {error.strerror or error}") from error
        self._digest.update(chunk)
        self.size += len(chunk)

    def chunks(self) -> Iterator[bytes]:
        """All of it, from its beginning."""
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            yield chunk

    def rewound(self) -> IO[bytes]:
        """A file to read all of it from; it keeps this alive."""
        self._file.seek(0)
        return _Reading(self, self._file)  # type: ignore[return-value]


def _end(file: IO[bytes], budget: Budget, taken: Share) -> None:
    file.close()
    budget.give_back(taken)


class _Reading:
    """As `wsgi.input`."""

    def __init__(self, spool: Spool, file: IO[bytes]) -> None:
        self._spool = spool
        self.read = file.read
        self.readline = file.readline
        self.readlines = file.readlines
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)
