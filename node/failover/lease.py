"""The lease: who is primary, in one small object of the archive's store, changed only by compare-and-swap.

    {"walcast_lease": 1, "term": 3, "holder": "f00…", "address": "10.0.0.1:7420", "lease_s": 10.0,
     "nonce": "…", "followers": ["ba7…"], "database": "9f0c…", "expires": "2026-01-01T00:00:10Z"}

It is also the address book: a follower that has lost its primary finds the holder here. `nonce` is another one in every
version, so that everybody sees a renewal without comparing clocks; `expires` is for people, nothing is decided by it.
`database` is the id of the database that the set has, which an older walcast does not write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from walcast.errors import Corrupt
from walcast.identity import parse_database_id

KEY = "walcast-lease"
FORMAT = 1
MOST_BYTES = 16 << 10
MOST_FOLLOWERS = 100
LEAST_S = 0.1
MOST_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Lease:
    """`holder` is a node's id; it is the primary of `term` for `lease_s` seconds after it wrote this. `followers`, ids
    too, take over by themselves and had a stream then: whoever takes over gives each a moment to say how far it is.
    """

    term: int
    holder: str
    address: str
    lease_s: float
    nonce: str
    followers: tuple[str, ...] = ()
    database: str = ""

    def encode(self, now_s: float) -> bytes:
        """As it lies in the store; `now_s` is the wall clock, for people."""
        expires = datetime.fromtimestamp(now_s + self.lease_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        facts = {
            "walcast_lease": FORMAT,
            "term": self.term,
            "holder": self.holder,
            "address": self.address,
            "lease_s": self.lease_s,
            "nonce": self.nonce,
            "followers": list(self.followers),
            **({"database": self.database} if self.database else {}),
            "expires": expires,
        }
        return json.dumps(facts).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Lease:
        """Corrupt for what is none, or of a version to come."""
        try:
            facts: Any = json.loads(data) if len(data) <= MOST_BYTES else None
            if not isinstance(facts, dict) or facts.get("walcast_lease") != FORMAT:
                raise ValueError("not a lease of this version")
            lease = cls(
                term=int(facts["term"]),
                holder=str(facts["holder"]),
                address=str(facts["address"]),
                lease_s=float(facts["lease_s"]),
                nonce=str(facts["nonce"]),
                followers=tuple(str(follower) for follower in facts.get("followers", ())),
                database=parse_database_id(facts["database"]) if "database" in facts else "",
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Corrupt(f"{KEY}: {error}") from error
        if not (0 < lease.term < 1 << 32 and LEAST_S <= lease.lease_s <= MOST_S and lease.holder and lease.nonce):
            raise Corrupt(f"{KEY}: term {lease.term}, lease of {lease.lease_s} s, holder {lease.holder!r}")
        return lease


def is_other(lease: Lease, database_id: str) -> bool:
    """Is it the lease of another database? Where one of the two does not say, nobody can tell."""
    return bool(lease.database and database_id and lease.database != database_id)


def other_words(url: str, lease: Lease, database_id: str) -> str:
    """Which is which."""
    return (
        f"the lease in {url} is of the database {lease.database}, whose primary is {lease.holder} at {lease.address}, "
        f"term {lease.term}, and this node has the database {database_id}"
    )
