"""An archive whose objects are not downloaded again after a bootstrap, or a catch-up, broke off.

What is downloaded is appended to `archive.partial` in the state folder, as soon as it is worth it: at once where a try
has failed before, else after `WORTH_S`. Records, of which a power cut may have left only the first ones:

    which bytes of which object, 16 bytes, a hash · how many bytes, u32 · their CRC-32, u32 · CRC-32 of all that, u32
    (little-endian), then the bytes

An object is known by its key, its size and its time, as the store lists them: one that was written again is another.
Without room for all that is needed beside it, nothing more is kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from walcast.errors import DiskFull
from walcast.filesystem import pwrite_all
from walcast.permissions import open_or_create
from walcast.shortage import free_bytes
from walcast.statedir import PARTIAL
from walcast.store import Store
from walcast.store.base import ObjectInfo

T = TypeVar("T")

log = logging.getLogger("walcast.follower")

WORTH_S = 5.0
STEP_BYTES = 256 << 10  # of one request after a try that failed: what is lost of it with a line that breaks
SPARE_BYTES = 8 << 20
CHUNK_MOST_BYTES = 16 << 20

_RECORD = struct.Struct("<16sII")
_CRC = struct.Struct("<I")


class _Kept(NamedTuple):
    offset: int
    size: int
    crc: int


class Downloads:
    """The archive `store`, to be read by one follower. Threads may share it."""

    def __init__(self, store: Store, state_dir: Path) -> None:
        self.path = state_dir / f"archive{PARTIAL}"
        self.hits_bytes = 0
        self._store = store
        self._known: dict[str, tuple[int, int]] = {}  # of an object: size and time
        self._kept: dict[bytes, _Kept] = {}
        self._fd = -1
        self._end = 0
        self._needed_bytes = 0
        self._began_s = 0.0
        self._failed_before = False
        self._gave_up = False
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Everything else is as the store has it."""
        return getattr(self._store, name)

    # One try

    def run(self, work: Callable[[Store], T]) -> T:
        """What `work` makes of the archive. What it has downloaded is kept for the next try if it fails, but not on a
        full disk."""
        self.begin()
        try:
            made = work(self.as_store)
        except DiskFull:
            self.discard()
            raise
        except BaseException:
            self.failed()
            raise
        self.discard()
        return made

    @property
    def as_store(self) -> Store:
        """What it does not do itself its store does."""
        store: Any = self
        return store  # type: ignore[no-any-return]

    def begin(self) -> None:
        """A try begins: what an earlier one left is used."""
        self._began_s, self._gave_up, self._needed_bytes = time.monotonic(), False, 0
        self._failed_before = self.path.exists()
        self._known.clear()
        if self._failed_before and self._fd < 0:
            try:
                self._fd = open_or_create(self.path)
                self._load()
            except OSError as error:
                self._give_up(error)

    def failed(self) -> None:
        """The try did not succeed: the next one keeps what it gets from its first byte on."""
        if not self._gave_up and self._fd < 0:
            try:
                self._fd = open_or_create(self.path, os.O_RDWR | os.O_TRUNC)
            except OSError as error:
                self._give_up(error)

    def discard(self) -> None:
        """Nothing of it is needed any more, or its room is."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._end, self._kept = -1, 0, {}
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """What is there stays for the next process. The store is the owner's to close."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._kept = -1, {}

    def leave_room(self, needed_bytes: int) -> None:
        """So much is going to be written beside it."""
        self._needed_bytes = needed_bytes
        free = free_bytes(self.path)
        if free is not None and free < needed_bytes + SPARE_BYTES:
            self.discard()
            self._gave_up = True

    # As a store

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As the store lists them, and remembered."""
        for info in self._store.list(prefix):
            self._known[info.key] = info.size, info.timestamp_ms
            yield info

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """From what is kept, or from the store."""
        if length is None or key not in self._known:
            return self._store.get(key, start, length)
        if not self._failed_before or length <= STEP_BYTES:
            return self._piece(key, start, length)
        ends = range(start, start + length, STEP_BYTES)
        return b"".join(self._piece(key, at, min(STEP_BYTES, start + length - at)) for at in ends)

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        """As the store's; in requests of their own where they are kept."""
        if not self._failed_before or key not in self._known:
            yield from self._store.chunks(key, size)
            return
        total, step = self._known[key][0], min(size, CHUNK_MOST_BYTES)
        for start in range(0, total, step):
            yield self.get(key, start, min(step, total - start))

    def _piece(self, key: str, start: int, length: int) -> bytes:
        name = self._name(key, start, length)
        found = self._find(name)
        if found is not None:
            return found
        data = self._store.get(key, start, length)
        if len(data) == length and self._keeps(length):
            self._add(name, data)
        return data

    def _name(self, key: str, start: int, length: int) -> bytes:
        size, timestamp_ms = self._known[key]
        what = f"{self._store.url}\0{key}\0{size}\0{timestamp_ms}\0{start}\0{length}"
        return hashlib.blake2b(what.encode(), digest_size=16).digest()

    # The file

    def _load(self) -> None:
        """Only the heads of the records are read; the rest is proven when it is used."""
        at, size = 0, os.fstat(self._fd).st_size
        while at + _RECORD.size + _CRC.size <= size:
            head = os.pread(self._fd, _RECORD.size + _CRC.size, at)
            name, count, crc = _RECORD.unpack_from(head)
            at += len(head)
            if _CRC.unpack_from(head, _RECORD.size)[0] != zlib.crc32(head[: _RECORD.size]) or at + count > size:
                break
            self._kept[name] = _Kept(at, count, crc)
            at += count
            self._end = at

    def _find(self, name: bytes) -> bytes | None:
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or self._fd < 0:
                return None
            try:
                data = os.pread(self._fd, kept.size, kept.offset)
            except OSError:
                data = b""
            if len(data) != kept.size or zlib.crc32(data) != kept.crc:
                del self._kept[name]
                return None
            self.hits_bytes += len(data)
            return data

    def _keeps(self, length: int) -> bool:
        if self._gave_up or os.getpid() != self._pid:
            return False
        if not self._failed_before and time.monotonic() - self._began_s < WORTH_S:
            return False
        free = free_bytes(self.path)
        return free is None or free >= self._needed_bytes + SPARE_BYTES + length

    def _add(self, name: bytes, data: bytes) -> None:
        record = _RECORD.pack(name, len(data), zlib.crc32(data))
        with self._lock:
            try:
                if self._fd < 0:
                    self._fd, self._end = open_or_create(self.path, os.O_RDWR | os.O_TRUNC), 0
                pwrite_all(self._fd, record + _CRC.pack(zlib.crc32(record)) + data, self._end)
            except OSError as error:
                self._give_up(error)
                return
            at = self._end + len(record) + _CRC.size
            self._kept[name] = _Kept(at, len(data), zlib.crc32(data))
            self._end = at + len(data)

    def _give_up(self, error: OSError) -> None:
        """It is a favour: without it everything is downloaded again."""
        log.debug("cannot keep what was downloaded", exc_info=error)
        self._gave_up = True


def leave_room(store: Store, needed_bytes: int) -> None:
    """Where downloads are kept: so much is going to be written beside them."""
    if isinstance(store, Downloads):
        store.leave_room(needed_bytes)
