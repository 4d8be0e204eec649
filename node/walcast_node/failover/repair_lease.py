"""The lease of a set, shown and mended by hand: what lies in the archive, why no node can go by it, and another one.

What a node would refuse is told apart here: an object that cannot be read as one of the store's at all, one that is no
lease, and a lease that can be read and is not believed. A new lease is written over exactly what was looked at, so that
what a node writes meanwhile stays.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from walcast.errors import ConfigError, Corrupt
from walcast.identifiers import printable
from walcast.store import ForeignObject, Store, UnsettledObject
from walcast.terms import TERM_MAX, is_plausible_term
from walcast_node.failover.decisions import EARLY
from walcast_node.failover.lease import KEY, Lease, is_other, other_words

CONTENT_SHOWN = 300

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What this node knows: the newest term, and the id of its database; 0 and "" for nothing."""

    term: int = 0
    database: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies where the lease is: `data` in its `version`; None where there is nothing, or nothing that can be read.
    `lease` is there where it is one. `wrong` says why no node goes by it, "" where nodes do."""

    data: bytes | None = None
    version: str | None = None
    lease: Lease | None = None
    wrong: str = ""

    @property
    def is_there(self) -> bool:
        """Is there anything?"""
        return self.data is not None or bool(self.wrong)

    @property
    def is_foreign(self) -> bool:
        """Is it no object of the store's, so that it must make way first?"""
        return self.data is None and bool(self.wrong)

    def facts(self) -> Facts | None:
        """As they are shown; None where there is nothing. `error` is there where no node goes by it."""
        if not self.is_there:
            return None
        facts: Facts = {"error": self.wrong} if self.wrong else {}
        if self.lease is not None:
            facts |= lease_facts(self.lease)
        elif self.data is not None:
            content = printable(self.data.decode(errors="backslashreplace"), CONTENT_SHOWN)
            facts |= {"bytes": len(self.data), "content": content}
        return facts


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """The lease that is wanted; None: as it is now."""

    term: int
    holder: str | None = None
    address: str | None = None
    lease_s: float | None = None


def lease_facts(lease: Lease) -> Facts:
    """Of one that can be read. `waits`: its holder acts only when it has seen it unchanged for the lease's time."""
    return {
        "term": lease.term,
        "holder": lease.holder,
        "address": lease.address,
        "lease_s": lease.lease_s,
        "waits": lease.nonce.endswith(EARLY),
        "nonce": lease.nonce,
        "followers": list(lease.followers),
        "database": lease.database,
    }


def look(store: Store, known: Known) -> Found:
    """What is there, judged as this node would judge it."""
    try:
        found = store.read(KEY)
    except (ForeignObject, UnsettledObject) as error:
        return Found(wrong=str(error))
    if found is None:
        return Found()
    try:
        lease = Lease.decode(found.data)
    except Corrupt as error:
        return Found(found.data, found.version, wrong=str(error))
    return Found(found.data, found.version, lease, _disbelief(lease, known, store.url))


def _disbelief(lease: Lease, known: Known, url: str) -> str:
    """Why this node does not go by a lease that it can read; "" when it does."""
    if not is_plausible_term(lease.term, known.term):
        return f"term {lease.term} cannot be: the newest term that this node has seen is {known.term}"
    if is_other(lease, known.database):
        return other_words(url, lease, known.database)
    return ""


def plan(found: Found, change: LeaseChange, known: Known) -> Lease:
    """The lease to write. ConfigError when something of it is not known, or when it is none that nodes would go by.

    Its holder waits: whoever had the lease before may still act, for the time of the lease that it knows.
    """
    before = found.lease
    holder = change.holder if change.holder is not None else before.holder if before else None
    address = change.address if change.address is not None else before.address if before else None
    if not found.is_there:
        raise ConfigError("there is no lease in the archive, so there is nothing to mend: the next primary makes one")
    if holder is None or address is None:
        raise ConfigError("the lease cannot be read: give the --holder and the --address that it is to have")
    if before is not None and change.holder is not None and change.holder != before.holder and change.address is None:
        raise ConfigError(f"--holder {holder}: give its --address, too; {address} is that of {before.holder}")
    lease_s = change.lease_s if change.lease_s is not None else before.lease_s if before else 10.0
    if before is not None and lease_s < before.lease_s:
        raise ConfigError(
            f"--lease-time {lease_s:g}: the holder of the lease that is there may act for {before.lease_s:g} s; "
            "give that or more"
        )
    if not is_plausible_term(change.term, known.term):
        raise ConfigError(
            f"--lease-term {change.term}: no node would go by it; the newest term that this node has seen is "
            f"{known.term}, and the highest that can be is {TERM_MAX:,}"
        )
    database = known.database or (before.database if before else "")
    lease = Lease(change.term, holder, address, lease_s, secrets.token_hex(16) + EARLY, database=database)
    try:
        lease.check()
    except Corrupt as error:
        raise ConfigError(str(error)) from error
    return lease


def write(store: Store, found: Found, lease: Lease) -> str | None:
    """Write it over what was found, and say where that is kept if it had to make way. ObjectChanged when something else
    is there by now, ConfigError for a store in which no lease can be kept."""
    if not store.honours_swaps():
        raise ConfigError(
            f"{store.url} ignores preconditions, so no lease can be kept there: stop all nodes, and remove {KEY} by "
            "other means"
        )
    kept, version = None, found.version
    if found.is_foreign:
        aside = store.set_aside(KEY)
        kept, version = aside.kept, aside.version
    store.swap(KEY, lease.encode(time.time()), version)
    return kept
