"""What a node believes to be, shown and mended by hand: its role file, its log and journal, the lease of its set.

For the day on which the automatic ways are stuck: a role file that says what is not so, a term that nobody can go
beyond, a lease that no node can read. Nothing is changed while a process serves or follows the database, and what is
written over is kept beside it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from follower.journal import Journal
from node.failover.lease import KEY, Lease
from primary.log import TransactionLog
from walcast.errors import ConfigError, Corrupt, Unavailable, WalcastError
from walcast.filesystem import write_durably
from walcast.identity import read_database_id
from walcast.statedir import StateDir, in_use, state_dir
from walcast.store import Store
from walcast.terms import FOLLOWER, PRIMARY, Standing, read_standing, write_standing
from walcast.wire import Address

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written; None: as it is."""

    role: str | None = None
    term: int | None = None
    primary: str | None = None  # HOST:PORT, or "" for nowhere

    @property
    def is_any(self) -> bool:
        return (self.role, self.term, self.primary) != (None, None, None)


def inspect(path: Path) -> Facts:
    """Everything on this host that says what the node is; what cannot be read is said as `error`. Of a node that runs
    log and journal are left alone."""
    folder = state_dir(path)
    if not folder.exists():
        raise ConfigError(f"{path}: no walcast process ever ran here: there is no {folder.name}")
    standing = _said(lambda: read_standing(folder))
    facts: Facts = {
        "path": str(path.absolute()),
        "in_use": in_use(path),
        "database_id": _said(lambda: read_database_id(folder)),
        "role_file": _role_facts(standing) if isinstance(standing, Standing) else standing,
        "log": None,
        "journal": None,
    }
    if facts["in_use"] is False:  # opening them finishes what was interrupted, which is the running process's to do
        held = StateDir(path)
        try:
            facts |= {"log": _said(lambda: _log_facts(folder)), "journal": _said(lambda: _journal_facts(folder))}
        finally:
            held.close()
    return facts


def _said(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (WalcastError, OSError) as error:
        return {"error": str(error)}


def _role_facts(standing: Standing) -> Facts:
    return {
        "role": standing.role,
        "term": standing.term,
        "primary": standing.primary,
        "lease": standing.lease,
        "terms_known": len(standing.history),
    }


def _log_facts(folder: Path) -> Facts | None:
    if not (folder / "log" / "checksums").exists():
        return None
    transactions = TransactionLog.open(folder / "log")
    try:
        return {"position": str(transactions.position), "term": transactions.term}
    finally:
        transactions.close()


def _journal_facts(folder: Path) -> Facts | None:
    if not (folder / "positions").exists():
        return None
    journal = Journal(folder)
    try:
        found = journal.last()
    finally:
        journal.close()
    return None if found is None else {"position": str(found[1]), "term": found[0]}


def newest_term(facts: Facts) -> int:
    """The newest term of which this node has a transaction."""
    said = (facts["log"], facts["journal"])
    return max((one["term"] for one in said if one is not None and "term" in one), default=0)


def lease_facts(store: Store) -> Facts | None:
    """The lease in the archive; None where there is none. One that no node can read has `error`."""
    found = store.read(KEY)
    if found is None:
        return None
    try:
        lease = Lease.decode(found.data)
    except Corrupt as error:
        return {"error": str(error), "bytes": len(found.data)}
    return {"term": lease.term, "holder": lease.holder, "address": lease.address, "lease_s": lease.lease_s}


def mend_role(path: Path, change: Change) -> Standing:
    """Write another role file, the one before kept beside it. ConfigError when a process runs, or when the change is
    none that a node can have."""
    if change.primary:
        Address.parse(change.primary)
    if change.term is not None and change.term < 1:
        raise ConfigError(f"term {change.term}: a term is 1 or more")
    held = StateDir(path)
    try:
        folder = state_dir(path)
        try:
            before = read_standing(folder) or Standing(FOLLOWER, 0)
        except ConfigError:
            before = Standing(FOLLOWER, 0)
        role, term = change.role or before.role, before.term if change.term is None else change.term
        known = before.primary if change.primary is None else change.primary
        history = tuple(begun for begun in before.history if begun.term <= term)
        after = replace(before, role=role, term=term, primary="" if role == PRIMARY else known, history=history)
        _keep(folder / "role")
        write_standing(folder, after)
        return after
    finally:
        held.close()


def _keep(file: Path) -> None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return
    write_durably(file.with_name(f"{file.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"), data)


def mend_lease(store: Store, *, term: int, holder: str | None, address: str | None, lease_s: float | None) -> Lease:
    """Write a lease that every node can read, in place of the one that is there. Its holder must renew it; if it does
    not, a candidate takes over when it has run out. ConfigError when something of it is not known, Unavailable when
    somebody else wrote it meanwhile."""
    found = store.read(KEY)
    if found is None:
        raise ConfigError(f"{store.url}: there is no lease; the next primary makes one")
    try:
        before: Lease | None = Lease.decode(found.data)
    except Corrupt:
        before = None
    if before is None and (holder is None or address is None):
        raise ConfigError("the lease cannot be read: give the --holder and the --address that it is to have")
    lease = Lease(
        term=term,
        holder=holder if holder is not None else before.holder if before else "",
        address=address if address is not None else before.address if before else "",
        lease_s=lease_s if lease_s is not None else before.lease_s if before else 10.0,
        nonce=secrets.token_hex(16),
        database=before.database if before else "",
    )
    Address.parse(lease.address)
    try:
        store.swap(KEY, lease.encode(time.time()), found.version)
    except OSError as error:
        raise Unavailable(f"{store.url}: {error.strerror or error}") from error
    return lease


def user() -> str:
    """Who mends: for the audit line."""
    return f"user:{os.geteuid()}"
