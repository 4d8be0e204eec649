"""Claims: what each follower that could take over says of itself, beside the lease, once the lease is not renewed.

    walcast-claims/<id>: {"walcast_claim": 1, "id": …, "nonce": …, "term": 3, "txid": 4711, "priority": 0,
                          "database": "9f0c…"}

`nonce` is that of the lease which ran out; claims for another one, or of another database, count for nothing. So all
candidates compare the same claims, also when they cannot reach each other: the store is where they meet.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from walcast.errors import Corrupt, ProtocolViolation, WalcastError
from walcast.identifiers import check_identifier, printable
from walcast.identity import parse_database_id
from walcast.store import ObjectInfo, Store
from walcast.terms import TERM_MAX, is_plausible_term

PREFIX = "walcast-claims/"
FORMAT = 1
MOST_BYTES = 4096
MOST_CLAIMS = 200  # that are read; a node has one, which it writes over
MOST_LISTED = 10_000


@dataclass(frozen=True, slots=True)
class Claim:
    """The node `id` has everything up to `txid` of `term`."""

    id: str
    nonce: str
    term: int
    txid: int
    priority: int = 0
    database: str = ""  # its id; "" from an older walcast

    @property
    def key(self) -> str:
        """Where it lies."""
        return PREFIX + self.id

    def encode(self) -> bytes:
        """As it lies in the store. Corrupt for what `decode` would refuse."""
        self.check()
        facts = {
            "walcast_claim": FORMAT,
            "id": self.id,
            "nonce": self.nonce,
            "term": self.term,
            "txid": self.txid,
            "priority": self.priority,
            **({"database": self.database} if self.database else {}),
        }
        return json.dumps(facts).encode() + b"\n"

    def check(self) -> None:
        """Corrupt for what nobody is to count."""
        try:
            check_identifier("id", self.id)
            check_identifier("nonce", self.nonce)
        except ProtocolViolation as error:
            raise Corrupt(f"a claim: {error}") from error
        possible = 0 <= self.term <= TERM_MAX and 0 <= self.txid < 1 << 64 and abs(self.priority) <= 1 << 31
        if not possible:
            raise Corrupt(
                f"a claim of {self.id!r}, term {self.term}, TXID {self.txid}, priority {self.priority}: impossible"
            )

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        """Corrupt for what is none."""
        if len(data) > MOST_BYTES:
            raise Corrupt(f"a claim of {len(data):,} bytes, more than {MOST_BYTES:,}")
        try:
            facts: Any = json.loads(data)
            if not isinstance(facts, dict) or facts.get("walcast_claim") != FORMAT:
                raise ValueError("not a claim of this version")
            numbers = (int(facts["term"]), int(facts["txid"]), int(facts["priority"]))
            database = parse_database_id(facts["database"]) if "database" in facts else ""
            claim = cls(str(facts["id"]), str(facts["nonce"]), *numbers, database)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Corrupt(f"a claim: {printable(str(error))}") from error
        claim.check()
        return claim


def worth_reading(listed: Iterable[ObjectInfo], expected: Collection[str] = ()) -> list[ObjectInfo]:
    """What may be claims: those of the nodes that are expected first, then the newest; nothing bigger than a claim, and
    no more than a set has nodes. What else lies there must neither fill the memory nor keep an election from its
    end."""
    keys = {PREFIX + node for node in expected}
    small = [found for found in islice(listed, MOST_LISTED) if found.size <= MOST_BYTES]
    small.sort(key=lambda found: (found.key in keys, found.timestamp_ms), reverse=True)
    return small[:MOST_CLAIMS]


def read_claims(
    store: Store, expected: Collection[str] = (), *, until_s: float = math.inf
) -> Iterator[tuple[ObjectInfo, Claim]]:
    """The claims that are in the store, as it lists them; what is none, or cannot be read, is left out. No more are
    read from `until_s` on, by the monotonic clock. Raises what `list` raises."""
    for found in worth_reading(store.list(PREFIX), expected):
        if time.monotonic() > until_s:
            return
        with suppress(WalcastError):
            claim = Claim.decode(store.get(found.key, 0, MOST_BYTES + 1))
            if claim.key == found.key:  # a node speaks for itself alone
                yield found, claim


def rank(claims: Iterable[Claim], mine: Claim) -> int:
    """How many go first: those that have more, then those of a higher priority, then by id. A term far above the own
    one is a lie, and counts for nothing."""
    others = [claim for claim in claims if claim.nonce == mine.nonce and claim.id != mine.id]
    others = [claim for claim in others if not (claim.database and mine.database and claim.database != mine.database)]
    others = [claim for claim in others if is_plausible_term(claim.term, mine.term)]
    return sum(_order(claim) < _order(mine) for claim in others)


def _order(claim: Claim) -> tuple[int, int, int, str]:
    return (-claim.term, -claim.txid, -claim.priority, claim.id)
