"""The small objects that nodes write for each other: lease, claim, the id of an archive; headers of its store."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from walcast.archive.identity import read_archive_id
from walcast.store import ObjectMissing
from walcast.store.s3_retry import retry_after_s
from walcast_node.failover.claims import Claim, rank
from walcast_node.failover.lease import Lease

SHORT = 3000
TOKENS = [b"null", b"true", b"NaN", b"Infinity", b"-1", b"1e999", b"[", b"{", b'"', b"\\u0000", b"\\ud800", b"[" * 500]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = Lease(3, "f00", "10.0.0.1:7420", 10.0, "nonce", ("a", "b"), "9f0c" * 8)
MINE = Claim("a", "nonce", 3, 4711, 1, "9f0c" * 8)


class _Store:
    url = "s3://bucket/app"
    data: bytes | None = None

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if self.data is None:
            raise ObjectMissing(key, self.url)
        return self.data[start:][:length]


def seeds() -> list[bytes]:
    return [
        b"\0" + LEASE.encode(time.time()),
        b"\1" + MINE.encode(),
        b'\2{"walcast_database": 1, "id": "' + b"9f0c" * 8 + b'"}\n',
        b"\3120",
        b"\3Wed, 21 Oct 2026 07:28:00 GMT",
    ]


def target(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    if kind == b"\0":
        lease = Lease.decode(data)
        assert Lease.decode(lease.encode(1_700_000_000.0)) == lease
        hash(lease)
    elif kind == b"\1":
        claim = Claim.decode(data)
        assert Claim.decode(claim.encode()) == claim
        assert rank([claim, MINE], MINE) in (0, 1)
    elif kind == b"\3":
        text = data.decode("latin-1")
        for name in ("retry-after", "x-amz-retry-after"):
            seconds = retry_after_s({name: text}, NOW)
            assert seconds is None or seconds >= 0
    else:
        store: Any = _Store()
        store.data = data
        read_archive_id(store)
