"""Terms: each promotion raises the term, and a node remembers what it is in which term.

TXIDs of different terms never overlap: a term begins behind a gap of at least TERM_TXIDS, one LTX file whose pages
change nothing. So what a deposed primary still had on its way into the archive when its time was over ends inside the
gap, and every restore goes past it; and a TXID alone tells two histories apart. The first TXID of a term ends with five
zeros in hex.

`app.db-walcast/role` is the one place that says what this node is; it is replaced atomically, so a change of role
happened or did not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from walcast.errors import ConfigError
from walcast.filesystem import write_durably
from walcast.position import Position
from walcast.statedir import open_state_file

TERM_TXIDS = 1 << 20
HISTORY_TERMS = 100

# A term costs an election or an operator's command, so terms rise slowly. A peer that names one far above the newest
# that was seen is wrong or lies; to believe it would lock every honest node out for ever.
TERM_STEP_MAX = 1_000
TERM_MAX = 1_000_000  # for a node that has seen no term yet: a promotion every five minutes for nine years
TXID_STEP_MAX = (2 * TERM_STEP_MAX + 1) * TERM_TXIDS  # of one LTX file: the gap before a term, at most
JUMP_MOST = 1 << 48  # TXIDs: 2^27 changes of the primary, or 9 years of a million commits a second
TXID_MAX = (1 << 62) - 1  # far beyond what TERM_MAX terms take; what is added to it still fits in 64 bits

PRIMARY = "primary"
FOLLOWER = "follower"

_NAME = "role"


def first_txid(txid: int, terms: int = 1) -> int:
    """The TXID with which a term begins that follows `txid`, `terms` later: of those in between this node has nothing,
    and they had TXIDs, too."""
    return (txid // TERM_TXIDS + 2 * max(1, terms)) * TERM_TXIDS


def is_plausible_term(term: int, seen: int) -> bool:
    """Can `term` have begun, when `seen` is the newest one that this node knows of (0: none)? Lower ones can."""
    return 0 <= term <= min(TERM_MAX, seen + TERM_STEP_MAX if seen else TERM_MAX)


@dataclass(frozen=True, slots=True)
class TermStart:
    """`term` follows the older one's position `start`; its first entry ends with `first_txid`."""

    term: int
    start: Position
    first_txid: int


def gaps_between(history: Sequence[TermStart], after_txid: int, until_txid: int) -> int:
    """How many TXIDs in (after, until] no transaction ever had, because a term began there."""
    inside = (begun for begun in history if after_txid <= begun.start.txid and begun.first_txid <= until_txid)
    return sum(begun.first_txid - begun.start.txid for begun in inside)


def begun_with(history: Sequence[TermStart], begun: TermStart) -> tuple[TermStart, ...]:
    """The history in which a term begins, for the first time or, where it was begun and given up before anything was
    published in it, once more: a term has one beginning."""
    return (*(one for one in history if one.term < begun.term), begun)[-HISTORY_TERMS:]


def term_of(history: Sequence[TermStart], txid: int) -> int:
    """The term in which the primary whose terms are `history` published `txid`; 0 when that was before all of them."""
    return max((begun.term for begun in history if begun.first_txid <= txid), default=0)


def forked_at(history: Sequence[TermStart], term: int, position: Position) -> Position | None:
    """Where a node at `position`, whose newest term is `term`, left the history of a primary whose terms are
    `history`; None when it did not: it is behind, or level."""
    later = min((begun for begun in history if begun.term > term), key=lambda begun: begun.term, default=None)
    if later is None or position.txid <= later.start.txid:
        return None
    return later.start


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node is: `role` in `term`; `primary`, HOST:PORT, is where it last knew the primary, "" for nowhere;
    `lease`: the set goes by one, so that this node must not act without."""

    role: str
    term: int
    primary: str = ""
    history: tuple[TermStart, ...] = ()
    lease: bool = False


def read_standing(state_dir: Path) -> Standing | None:
    """None when the node never took part in a failover. ConfigError when the file is damaged."""
    path = state_dir / _NAME
    try:
        with open_state_file(state_dir, _NAME) as file:
            facts: Any = json.loads(file.read())
        history = tuple(
            TermStart(int(begun["term"]), Position.parse(begun["start"]), int(begun["first_txid"], 16))
            for begun in facts["history"]
        )
        if facts["role"] not in (PRIMARY, FOLLOWER):
            raise ValueError(f"role {facts['role']!r}")
        return Standing(facts["role"], int(facts["term"]), str(facts["primary"]), history, bool(facts["lease"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}); remove it, and start this node as a follower") from error


def standing_since_s(state_dir: Path) -> float:
    """When the role file was written last, seconds since the epoch; 0 when there is none."""
    try:
        return (state_dir / _NAME).lstat().st_mtime
    except OSError:
        return 0.0


def write_standing(state_dir: Path, standing: Standing) -> None:
    """Atomically and durably."""
    facts = asdict(standing) | {
        "history": [
            {"term": begun.term, "start": str(begun.start), "first_txid": f"{begun.first_txid:016x}"}
            for begun in standing.history[-HISTORY_TERMS:]
        ]
    }
    write_durably(state_dir / _NAME, json.dumps(facts, indent=1).encode() + b"\n")
