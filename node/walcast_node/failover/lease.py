"""The lease: who is primary, in one small object of the archive's store, changed only by compare-and-swap.

    {"walcast_lease": 1, "term": 3, "holder": "f00…", "address": "10.0.0.1:7420", "lease_s": 10.0,
     "nonce": "…", "followers": ["ba7…"], "database": "9f0c…", "expires": "2026-01-01T00:00:10Z"}

It is also the address book: a follower that has lost its primary finds the holder here. `nonce` is another one in every
version, so that everybody sees a renewal without comparing clocks; `expires` is for people, nothing is decided by it.
`database` is the id of the database that the set has, which an older walcast does not write.

Anybody who can write to the archive can write anything here, so one function, `Lease.check`, says what a lease can be.
What it refuses is neither read nor written: a lease that no node can read leaves the set without a primary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from walcast.errors import ConfigError, Corrupt, ProtocolViolation
from walcast.identifiers import check_identifier, printable
from walcast.identity import parse_database_id
from walcast.terms import TERM_MAX
from walcast.wire import Address

KEY = "walcast-lease"
FORMAT = 1
MOST_BYTES = 16 << 10
MOST_FOLLOWERS = 100
MOST_FOLLOWERS_BYTES = 8 << 10
LEAST_S = 0.1
MOST_S = 3600.0  # as --lease-time: nobody takes over before it is over


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
        """As it lies in the store; `now_s` is the wall clock, for people. Corrupt for what `decode` would refuse."""
        self.check()
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
        data = json.dumps(facts).encode() + b"\n"
        if len(data) > MOST_BYTES:
            raise Corrupt(f"{KEY}: {len(data):,} bytes, more than {MOST_BYTES:,}")
        return data

    def check(self) -> None:
        """Corrupt for what no node may go by."""
        try:
            check_identifier("holder", self.holder)
            check_identifier("address", self.address)
            Address.parse(self.address)
            check_identifier("nonce", self.nonce)
            for follower in self.followers:
                check_identifier("follower id", follower)
        except (ProtocolViolation, ConfigError) as error:
            raise Corrupt(f"{KEY}: {error}") from error
        if not 0 < self.term <= TERM_MAX:
            raise Corrupt(f"{KEY}: term {self.term} is not between 1 and {TERM_MAX}")
        if not LEAST_S <= self.lease_s <= MOST_S:
            raise Corrupt(f"{KEY}: a lease of {self.lease_s} s; it is {LEAST_S:g} s to {MOST_S:g} s")
        if len(self.followers) > MOST_FOLLOWERS:
            raise Corrupt(f"{KEY}: {len(self.followers)} followers, more than {MOST_FOLLOWERS}")

    @classmethod
    def decode(cls, data: bytes) -> Lease:
        """Corrupt for what is none, or of a version to come."""
        if len(data) > MOST_BYTES:
            raise Corrupt(f"{KEY}: {len(data):,} bytes, more than {MOST_BYTES:,}")
        try:
            facts: Any = json.loads(data)
            if not isinstance(facts, dict) or "walcast_lease" not in facts:
                raise ValueError("not a lease of walcast's")
            if facts["walcast_lease"] != FORMAT:
                raise ValueError(f"a lease of version {facts['walcast_lease']!r}, and this walcast reads {FORMAT}")
            lease = cls(
                term=int(facts["term"]),
                holder=str(facts["holder"]),
                address=str(facts["address"]),
                lease_s=float(facts["lease_s"]),
                nonce=str(facts["nonce"]),
                followers=tuple(str(follower) for follower in facts.get("followers", ())),
                database=parse_database_id(facts["database"]) if "database" in facts else "",
            )
        except KeyError as error:
            raise Corrupt(f"{KEY}: it has no {error.args[0]!r}") from error
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Corrupt(f"{KEY}: {printable(str(error))}") from error
        lease.check()
        return lease


def fitting(followers: Iterable[str]) -> tuple[str, ...]:
    """As many of the followers, the first ones, as a lease has room for. Those that are left out take over all the
    same; they are only not waited for."""
    kept: list[str] = []
    size = 0
    for follower in followers:
        size += len(json.dumps(follower)) + 2
        if size > MOST_FOLLOWERS_BYTES or len(kept) == MOST_FOLLOWERS:
            break
        kept.append(follower)
    return tuple(kept)


def can_hold(holder: str, address: str) -> bool:
    """Can a lease name this node?"""
    try:
        Lease(1, holder, address, LEAST_S, "nonce").check()
    except Corrupt:
        return False
    return True


def is_other(lease: Lease, database_id: str) -> bool:
    """Is it the lease of another database? Where one of the two does not say, nobody can tell."""
    return bool(lease.database and database_id and lease.database != database_id)


def other_words(url: str, lease: Lease, database_id: str) -> str:
    """Which is which."""
    return (
        f"the lease in {url} is of the database {lease.database}, whose primary is {lease.holder} at {lease.address}, "
        f"term {lease.term}, and this node has the database {database_id}"
    )
