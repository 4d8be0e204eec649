"""Claims: what each follower that could take over says of itself, beside the lease, once the lease is not renewed.

    walcast-claims/<id>: {"walcast_claim": 1, "id": …, "nonce": …, "term": 3, "txid": 4711, "priority": 0,
                          "database": "9f0c…"}

`nonce` is that of the lease which ran out; claims for another one, or of another database, count for nothing. So all
candidates compare the same claims, also when they cannot reach each other: the store is where they meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from walcast.errors import Corrupt
from walcast.identity import parse_database_id

PREFIX = "walcast-claims/"
FORMAT = 1
MOST_BYTES = 4096


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
        """As it lies in the store."""
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

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        """Corrupt for what is none."""
        try:
            facts: Any = json.loads(data) if len(data) <= MOST_BYTES else None
            if not isinstance(facts, dict) or facts.get("walcast_claim") != FORMAT:
                raise ValueError("not a claim of this version")
            numbers = (int(facts["term"]), int(facts["txid"]), int(facts["priority"]))
            database = parse_database_id(facts["database"]) if "database" in facts else ""
            claim = cls(str(facts["id"]), str(facts["nonce"]), *numbers, database)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Corrupt(f"a claim: {error}") from error
        if not claim.id or claim.term < 0 or claim.txid < 0:
            raise Corrupt(f"a claim of {claim.id!r}, term {claim.term}, TXID {claim.txid}")
        return claim


def rank(claims: Iterable[Claim], mine: Claim) -> int:
    """How many go first: those that have more, then those of a higher priority, then by id."""
    others = [claim for claim in claims if claim.nonce == mine.nonce and claim.id != mine.id]
    others = [claim for claim in others if not (claim.database and mine.database and claim.database != mine.database)]
    return sum(_order(claim) < _order(mine) for claim in others)


def _order(claim: Claim) -> tuple[int, int, int, str]:
    return (-claim.term, -claim.txid, -claim.priority, claim.id)
