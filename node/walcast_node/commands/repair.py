"""`walcast repair DB`: what this node believes to be, shown, and mended with confirmation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from walcast import audit
from walcast.errors import ConfigError, WalcastError
from walcast.store import ObjectChanged, Store, open_store
from walcast.terms import FOLLOWER, PRIMARY, TERM_MAX
from walcast_node.commands.options import DATABASE, JSON, Command, flag
from walcast_node.commands.printing import say
from walcast_node.config.numbers import Seconds, Whole
from walcast_node.failover.lease import Lease
from walcast_node.failover.repair import (
    Change,
    Facts,
    inspect,
    mend_role,
    mended,
    newest_term,
    role_facts,
    standing_or_none,
    user,
)
from walcast_node.failover.repair_lease import Found, Known, LeaseChange, lease_facts, look, plan, write

EXAMPLES = """\b
Example:
  walcast repair app.db
  walcast repair app.db --role follower --primary 10.0.0.1:7420
  walcast repair app.db --archive s3://bucket/app --lease-term 4 --holder edge-1 --address 10.0.0.2:7420"""


@click.command("repair", cls=Command, epilog=EXAMPLES)
@click.argument("db", type=DATABASE)
@flag("--archive", default=None, help="URL of the archive whose lease is shown, or mended.")
@flag("--role", type=click.Choice([PRIMARY, FOLLOWER]), default=None, help="What this node is to be when it starts.")
@flag("--term", type=Whole(1, TERM_MAX), default=None, help="The term that the role file is to have.")
@flag(
    "--primary",
    default=None,
    envvar="WALCAST_REPAIR_PRIMARY",  # WALCAST_PRIMARY is the follower's, and must not make a look a change
    help="HOST:PORT where this node is to look for the primary first; 'none' for nowhere.",
)
@flag("--lease-term", type=Whole(1, TERM_MAX), default=None, help="Write a lease of this term.")
@flag("--holder", default=None, help="Id of the node that the lease is to name; the one that it names, if not given.")
@flag("--address", default=None, help="HOST:PORT of that node.")
@flag(
    "--lease-time",
    type=Seconds(1, 3600),
    default=None,
    envvar="WALCAST_REPAIR_LEASE_TIME",
    help="Seconds that the lease is to last; not less than it does now.",
)
@flag("--yes", is_flag=True, help="Do not ask.")
@JSON
def repair_command(
    db: Path,
    archive: str | None,
    role: str | None,
    term: int | None,
    primary: str | None,
    lease_term: int | None,
    holder: str | None,
    address: str | None,
    lease_time: float | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Show what a node believes to be, and mend it by hand.

    Without a change it only shows: the role file, the newest transactions of log and journal, and with --archive the
    lease, and why nodes do not go by it. With one it shows what it will write, asks, and writes; the role file before
    is kept as role.before-TIME, and what is no lease at all under another name. Stop the node before its role file is
    changed. It does not make a lost transaction come back, and it moves no other node: do the same there.
    """
    change = Change(role, term, None if primary is None else "" if primary == "none" else primary)
    if (holder is not None or address is not None or lease_time is not None) and lease_term is None:
        raise click.UsageError("--holder, --address and --lease-time are of a new lease: give --lease-term as well")
    if lease_term is not None and archive is None:
        raise click.UsageError("--lease-term needs --archive, where the lease is")
    wanted = LeaseChange(lease_term, holder, address, lease_time) if lease_term is not None else None
    with _opened(archive) as store:
        facts = inspect(db)
        known = _known(facts)
        found = Found()
        if store is not None:
            try:
                store.check(write=False)
                found = look(store, known)
                facts["lease"] = found.facts()
            except WalcastError as error:
                if wanted is not None:
                    raise
                facts["lease"] = {"error": str(error)}
        if not change.is_any and wanted is None:
            _print(facts, as_json)
            return
        if change.is_any and facts["in_use"]:
            raise ConfigError(f"{db}: a walcast process runs here: stop it before its role file is changed")
        lease = plan(found, wanted, known) if wanted is not None else None
        after = mended(standing_or_none(db), change, newest_term(facts)) if change.is_any else None
        if not yes:
            say(_shown(facts), err=True)
            will: Facts = {"role_file": role_facts(after)} if after is not None else {}
            will |= {"lease": lease_facts(lease)} if lease is not None else {}
            say(f"\nwill be written\n{_shown(will)}", err=True)
            for warning in _warnings(facts, change, found, lease):
                say(f"warning: {warning}", err=True)
            click.confirm("Write this?", abort=True, err=True)
        done: Facts = {}
        if lease is not None and store is not None:
            done["lease"] = _write_lease(store, found, lease)
            audit.record("repaired", user(), database=str(db), lease=done["lease"])
        if change.is_any:
            done["role_file"] = role_facts(mend_role(db, change, newest_term(facts)))
            audit.record("repaired", user(), database=str(db), role_file=done["role_file"])
    _print(done, as_json)


def _known(facts: Facts) -> Known:
    role, database = facts["role_file"], facts["database_id"]
    seen = role.get("term", 0) if role is not None else 0
    seen = seen if seen <= TERM_MAX else 0  # what is to be mended says nothing
    return Known(max(seen, newest_term(facts)), database if isinstance(database, str) else "")


def _write_lease(store: Store, found: Found, lease: Lease) -> Facts:
    try:
        kept = write(store, found, lease)
    except ObjectChanged as error:
        raise ConfigError(
            f"{error}: another node or person has written it since it was looked at; nothing was written, look again"
        ) from error
    return lease_facts(lease) | ({"kept": kept} if kept is not None else {})


def _print(facts: Facts, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
    else:
        say(_shown(facts))


@contextmanager
def _opened(archive: str | None) -> Iterator[Store | None]:
    if archive is None:
        yield None
        return
    with open_store(archive) as store:
        yield store


def _warnings(facts: Facts, change: Change, found: Found, lease: Lease | None) -> list[str]:
    newest = newest_term(facts)
    warnings = []
    if change.term is not None and change.term < newest:
        warnings.append(
            f"this node has transactions of term {newest}: as term {change.term} it is not followed by others"
        )
    if change.role == PRIMARY:
        warnings.append("if another node is the primary, there are two then: look at it first")
    if lease is None:
        return warnings
    if lease.term < newest:
        warnings.append(f"this node has transactions of term {newest}, which is newer than the lease will be")
    if found.lease is not None and not found.wrong:
        warnings.append(
            f"nodes go by the lease that is there: {found.lease.holder} stops taking writes when it reads the new one; "
            "`walcast switchover` moves the primary without that"
        )
    if found.lease is None:
        warnings.append(
            f"how long the lease before lasted cannot be read: {lease.holder} acts {lease.lease_s:g} s after it has "
            "seen the new one; give a longer --lease-time if another node may still act after that"
        )
    if found.is_foreign:
        warnings.append("what is there is kept under another name, and a new lease is made in its place")
    return warnings


def _shown(facts: Facts) -> str:
    """One line each, nested names with a dot."""
    return "\n".join(f"{name:24} {value}" for name, value in _flat(facts))


def _flat(facts: Facts, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else value
