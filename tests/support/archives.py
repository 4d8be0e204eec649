"""Archives made by hand: what every TXID of a database is, and files of any range of TXIDs."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from walcast.archive import ltx_key
from walcast.checksum import PageChecksums
from walcast.ltx import FLAG_NO_CHECKSUM, Encoder, Header
from walcast.store import ObjectInfo, ObjectMissing, Store


class MemoryStore:
    """A store that needs no disk; `requests` are the keys that were read and the prefixes that were listed."""

    url = "memory:"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.requests: list[str] = []

    def level_prefix(self, level: int) -> str:
        return f"{level:04x}/"

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.requests.append(key)
        if key not in self.objects:
            raise ObjectMissing(key, self.url)
        body = self.objects[key][0]
        return body[start:] if length is None else body[start : start + length]

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        file = io.BytesIO(self.get(key))
        return iter(lambda: file.read(size), b"")

    def put(self, key: str, body: BinaryIO | bytes, *, timestamp_ms: int) -> None:
        self.objects[key] = (body if isinstance(body, bytes) else body.read(), timestamp_ms)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.requests.append(prefix)
        for key in sorted(self.objects):
            if key.startswith(prefix):
                body, timestamp_ms = self.objects[key]
                yield ObjectInfo(key, len(body), timestamp_ms)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def check(self, *, write: bool = True) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class History:
    """States of a database by TXID, made by a seeded generator, and files of any range of them in a store."""

    def __init__(self, store: Store, page_size: int = 512, seed: int = 1) -> None:
        self.store = store
        self.page_size = page_size
        self.states: dict[int, bytes] = {0: b""}
        self._random = random.Random(seed)

    def commit(self, count: int = 1) -> None:
        for _ in range(count):
            size = self.page_size
            state = bytearray(self.states[len(self.states) - 1])
            pages = max(1, len(state) // size + self._random.choice((-2, 0, 1, 3)))
            fresh = range(len(state) // size, pages)
            state = state[: pages * size] + bytes(max(0, pages * size - len(state)))
            for index in {*fresh, *(self._random.randrange(pages) for _ in range(2))}:
                state[index * size : index * size + 16] = self._random.randbytes(16)
            self.states[len(self.states)] = bytes(state)

    def checksum(self, txid: int) -> int:
        return PageChecksums.scan(self.page_size, iter([(1, self.states[txid])])).database

    def put(self, level: int, low: int, high: int, *, checksums: bool = False, lie: int = 0) -> str:
        """The file that takes the database from TXID `low` - 1 to `high`; its key."""
        size, state = self.page_size, self.states[high]
        header = Header(
            page_size=size,
            commit_pages=len(state) // size,
            min_txid=low,
            max_txid=high,
            timestamp_ms=high * 1000,
            flags=0 if checksums else FLAG_NO_CHECKSUM,
            pre_checksum=self.checksum(low - 1) if checksums and low > 1 else 0,
            database_checksum=0 if checksums else self.checksum(high) ^ lie,
            term=7,
        )
        out = bytearray()
        encoder = Encoder(header, out.extend)
        for pgno in range(1, header.commit_pages + 1):
            window = slice((pgno - 1) * size, pgno * size)
            changed = any(self.states[t][window] != self.states[low - 1][window] for t in range(low, high + 1))
            if low == 1 or changed:
                encoder.add(pgno, state[window])
        encoder.finish(self.checksum(high) if checksums else 0)
        key = ltx_key(self.store, level, low, high)
        self.store.put(key, bytes(out), timestamp_ms=header.timestamp_ms)
        return key
