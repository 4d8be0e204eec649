"""What a promotion loses, as far as a follower can know."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from walcast.position import Position
from walcast.terms import gaps_between

if TYPE_CHECKING:
    from walcast_follower.following import Following


def missing_facts(following: Following | None, position: Position, *, offered: bool) -> dict[str, Any]:
    """Of a node that is promoted at `position`. `missing`: transactions that the primary is known to have had and this
    replica has not; `known`: that is all there can be, since the primary offered its place and gave everything before
    it made way; `heard_s`: how long ago it was heard of."""
    if following is None:
        return {"missing": 0, "known": True, "heard_s": None}
    here, there = position.txid, following.status.primary_txid
    missing = max(0, there - here - gaps_between(following.history, here, there))
    heard_ns = following.showing.heard_ns
    heard_s = round((time.time_ns() - heard_ns) / 1e9, 3) if heard_ns else None
    return {"missing": missing, "known": offered, "heard_s": heard_s}


def missing_words(facts: dict[str, Any]) -> str:
    """For people, in one line."""
    if facts["known"]:
        return "nothing of the old primary is missing: it gave everything before it made way"
    some = f"{facts['missing']} transactions of the old primary are known to be missing"
    none = "no transaction of the old primary is known to be missing"
    if facts["heard_s"] is None:
        return "it cannot be known what of the old primary is missing: this follower never heard of it"
    since = f"what it committed after it was last heard of, {facts['heard_s']:.1f} s ago, cannot be known"
    return f"{some if facts['missing'] else none}; {since}"
