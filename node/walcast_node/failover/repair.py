"""What a node believes to be, shown and mended by hand: its role file, its log and journal.

For the day on which the automatic ways are stuck: a role file that says what is not so, or a term that nobody can go
beyond. Nothing is changed while a process serves or follows the database, and what is written over is kept beside it.
`repair_lease` has the lease.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from walcast.errors import ConfigError, WalcastError
from walcast.filesystem import write_durably
from walcast.identity import read_database_id
from walcast.statedir import SUFFIX, StateDir, database_of, in_use, state_dir
from walcast.terms import FOLLOWER, PRIMARY, TERM_MAX, Standing, read_standing, write_standing
from walcast.wire import Address
from walcast_follower.apply.position_journal import Journal
from walcast_primary.transaction_log.transaction_log import TransactionLog

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
        raise ConfigError(_nothing_words(path))
    standing = _said(lambda: read_standing(folder))
    facts: Facts = {
        "path": str(path.absolute()),
        "in_use": in_use(path),
        "database_id": _said(lambda: read_database_id(folder)),
        "role_file": role_facts(standing) if isinstance(standing, Standing) else standing,
        "log": None,
        "journal": None,
    }
    if facts["in_use"] is False:  # opening them finishes what was interrupted, which is the running process's to do
        facts |= _said(lambda: _held_facts(path), {"log", "journal"})
    return facts


def _nothing_words(path: Path) -> str:
    folder = state_dir(path)
    database = database_of(path)
    if path.name.endswith(SUFFIX) and path.is_dir():
        return f"{path} is a state folder: give the path of its database, {database}"
    if not path.exists():
        return f"{path}: no such file, and no {folder.name} beside it: give the path of the database as its node has it"
    return f"{path}: no walcast process ever ran here: there is no {folder.name}"


def _held_facts(path: Path) -> Facts:
    held = StateDir(path)
    try:
        folder = state_dir(path)
        return {"log": _said(lambda: _log_facts(folder)), "journal": _said(lambda: _journal_facts(folder))}
    finally:
        held.close()


def _said(read: Callable[[], Any], names: Iterable[str] = ()) -> Any:
    """What `read` returns, or why it cannot be read; with `names` that of each of them."""
    try:
        return read()
    except (WalcastError, OSError) as error:
        wrong = {"error": str(error)}
        return dict.fromkeys(names, wrong) or wrong


def role_facts(standing: Standing) -> Facts:
    """As they are shown."""
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


def mended(before: Standing | None, change: Change, newest: int) -> Standing:
    """The role file with the change; `newest` is the newest term of which this node has a transaction, which counts
    where no role file says one. ConfigError for what no node can be."""
    if change.primary:
        Address.parse(change.primary)
    before = before or Standing(FOLLOWER, newest)
    role, term = change.role or before.role, before.term if change.term is None else change.term
    if not 1 <= term <= TERM_MAX:
        raise ConfigError(f"term {term}: a term is 1 to {TERM_MAX:,}; give the right one with --term")
    known = before.primary if change.primary is None else change.primary
    history = tuple(begun for begun in before.history if begun.term <= term)
    return replace(before, role=role, term=term, primary="" if role == PRIMARY else known, history=history)


def standing_or_none(path: Path) -> Standing | None:
    """What the role file says; None where there is none, or where it is damaged."""
    try:
        return read_standing(state_dir(path))
    except ConfigError:
        return None


def mend_role(path: Path, change: Change, newest: int) -> Standing:
    """Write another role file, the one before kept beside it. ConfigError when a process runs, or when the change is
    none that a node can have."""
    held = StateDir(path)
    try:
        after = mended(standing_or_none(path), change, newest)
        _keep(state_dir(path) / "role")
        write_standing(state_dir(path), after)
        return after
    finally:
        held.close()


def _keep(file: Path) -> None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return
    write_durably(file.with_name(f"{file.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"), data)


def user() -> str:
    """Who mends: for the audit line."""
    return f"user:{os.geteuid()}"
