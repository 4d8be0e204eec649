"""What an archive store can do: objects with a key, in a directory or in an S3 bucket.

Keys are relative to the store's URL. Every implementation keeps these promises; `tests/test_store.py` runs them all:

* An object is there whole or not at all: a `put` that fails midway changes nothing.
* `list` is sorted by key and reads its listing as it goes, so an archive of any size can be listed.
* Nothing waits for ever, and memory stays bounded whatever the size of an object.
* Of several `put`s with `if_absent` of one key at the same time one succeeds, where `honours_preconditions` says so.
* Of several `swap`s over one version of an object at most one succeeds, where `honours_swaps` says so, whoever is
  stopped in the middle of one and for how long; nobody waits for another.
* What others put there is not believed: only a regular file is an object, no link is followed, nothing waits for a
  FIFO, an object that is read whole and a listing are of bounded size.
* What goes wrong is `ObjectMissing`, `ObjectExists`, `ObjectChanged`, `Unavailable` (a retry may help) or `ConfigError`
  (it will not: the message says what to change), or Corrupt for what is there and is no object.

A store may be used by several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from walcast.errors import ConfigError, Unavailable

LISTED_MOST = 1_000_000  # objects of one listing, and names of one folder: some 300 bytes each while they are planned
WHOLE_MOST_BYTES = 256 << 20  # of an object that is read at once; what is larger is read in pieces


class ObjectMissing(Unavailable):
    """There is no object of this key now: retention may have removed it after it was listed."""

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{key} is not in the archive {url}")
        self.key = key
        self.url = url


class ObjectExists(Unavailable):
    """There is an object of this key already, and it was not to be replaced."""

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{key} is in the archive {url} already")
        self.key = key
        self.url = url


class ObjectChanged(Unavailable):
    """The object is not, or no more, the version that was to be written over: read it again."""

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{key} in the archive {url} was changed by somebody else")
        self.key = key
        self.url = url


class ForeignObject(ConfigError):
    """What lies under a key that `swap` writes was not written by it: it is damaged, too big, or another program's."""


class UnsettledObject(Unavailable):
    """An object that `swap` writes could not be read: it changes all the time, or parts of it are missing."""


class ListingTooLong(ConfigError):
    """There are more objects than an archive can have, or a listing has no end."""

    def __init__(self, prefix: str, url: str) -> None:
        super().__init__(
            f"{prefix or 'the archive'} in {url} holds more than {LISTED_MOST:,} objects, more than an archive can: "
            "remove what does not belong there, or give the archive a prefix of its own"
        )
        self.prefix = prefix


@dataclass(frozen=True, slots=True)
class Versioned:
    """A small object, and which version of it this is: opaque, and never the same for two with different content."""

    data: bytes
    version: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """What made way for a `swap`: `kept` is where it is now, and `version` what to swap over, None for nothing."""

    kept: str
    version: str | None


@dataclass(frozen=True, slots=True, order=True)
class ObjectInfo:
    """One line of a listing. `timestamp_ms` is the store's own: S3 lists when an object was uploaded."""

    key: str
    size: int
    timestamp_ms: int


class Store(Protocol):
    """An archive store. Close it when done; it is its own context manager."""

    @property
    def url(self) -> str:
        """The store's URL, without secrets."""

    def level_prefix(self, level: int) -> str:
        """Where LTX files of a level live, as Litestream lays them out in this kind of store; ends with a slash."""

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """An object or a range of it; fewer bytes than asked for where it ends earlier. Without `length` at most
        WHOLE_MOST_BYTES, and Corrupt for a larger object."""

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        """An object from its start, in pieces of `size` bytes (the last may be shorter)."""

    def put(self, key: str, body: BinaryIO | bytes, *, timestamp_ms: int, if_absent: bool = False) -> None:
        """Write an object, all or nothing, over an older one of that key. A stream is read to its end, not closed.

        With `if_absent` an older one stays, and ObjectExists is raised; a store that cannot tell, see
        `honours_preconditions`, writes over it all the same.
        """

    def honours_preconditions(self) -> bool:
        """Can the store write only where there is no object? Asks it once, with a probe object, and remembers."""

    def read(self, key: str) -> Versioned | None:
        """An object that `swap` writes, or None where there is none. ForeignObject where `swap` cannot have written it;
        no more than the size of a small object is read."""

    def swap(self, key: str, data: bytes, version: str | None) -> str:
        """Write a small object, at most 64 KiB, over exactly that version, or with None where there is none; the new
        version. The key is `swap`'s and `read`'s alone: no `put`, and how it is listed or deleted is not said.

        ObjectChanged when the object is another version by now, or gone; ours may have been it in between. Any other
        Unavailable leaves open whether it was written, or still will be: who reads finds out. Content must never come
        again (put a nonce in): an attempt whose answer was lost is repeated, and is told by it from others' writes.
        """

    def set_aside(self, key: str) -> SetAside:
        """Keep what lies under a key of `swap`'s under another name, where `read` raises ForeignObject or
        UnsettledObject, so that a `swap` can write the object. ObjectChanged where `read` does not raise it any more;
        then nothing was moved."""

    def honours_swaps(self) -> bool:
        """Does the store refuse a swap over a wrong version, and a creation where there is an object, and accept the
        right ones? Asks it once, with a probe object, and remembers. Where it does not, do not `swap`."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose key starts with `prefix`, sorted by key."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""

    def check(self, *, write: bool = True, delete: bool = True) -> None:
        """Is the store reachable, may we write, and delete? Without `delete` it leaves a small object behind where we
        may not; else nothing."""

    def tidy(self) -> None:
        """Remove what killed uploads left behind, when it is older than a day. Never fails: it is a favour."""

    def close(self) -> None:
        """Release connections. Harmless when repeated."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
