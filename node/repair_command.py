"""`walcast repair DB`: what this node believes to be, shown, and mended with confirmation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from node.options import JSON, PATH, Command, flag
from node.repair import Change, Facts, inspect, lease_facts, mend_lease, mend_role, newest_term, user
from walcast import audit
from walcast.store import Store, open_store
from walcast.terms import FOLLOWER, PRIMARY

EXAMPLES = """\b
Example:
  walcast repair app.db
  walcast repair app.db --role follower --primary 10.0.0.1:7420
  walcast repair app.db --archive s3://bucket/app --lease-term 4 --holder edge-1 --address 10.0.0.2:7420"""


@click.command("repair", cls=Command, epilog=EXAMPLES)
@click.argument("db", type=PATH)
@flag("--archive", default=None, help="URL of the archive whose lease is shown, or mended.")
@flag("--role", type=click.Choice([PRIMARY, FOLLOWER]), default=None, help="What this node is to be when it starts.")
@flag("--term", type=click.IntRange(min=1), default=None, help="The term that the role file is to have.")
@flag("--primary", default=None, help="HOST:PORT where this node is to look for the primary first; 'none' for nowhere.")
@flag("--lease-term", type=click.IntRange(min=1), default=None, help="Write a lease of this term.")
@flag("--holder", default=None, help="Id of the node that the lease is to name; the one that it names, if not given.")
@flag("--address", default=None, help="HOST:PORT of that node.")
@flag("--lease-time", type=click.FloatRange(1, 3600), default=None, help="Seconds that the lease is to last.")
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
    lease. With one it says what it will write, asks, and writes; the role file before is kept as role.before-TIME. Stop
    the node first. It does not make a lost transaction come back, and it moves no other node: do the same there.
    """
    change = Change(role, term, None if primary is None else "" if primary == "none" else primary)
    if (holder or address or lease_time) and lease_term is None:
        raise click.UsageError("--holder, --address and --lease-time are of a new lease: give --lease-term as well")
    if lease_term is not None and archive is None:
        raise click.UsageError("--lease-term needs --archive, where the lease is")
    with _opened(archive) as store:
        facts = inspect(db)
        if store is not None:
            facts["lease"] = lease_facts(store)
        if not change.is_any and lease_term is None:
            click.echo(json.dumps(facts) if as_json else _shown(facts))
            return
        if not yes:
            click.echo(_shown(facts), err=True)
            for warning in _warnings(facts, change):
                click.echo(f"warning: {warning}", err=True)
            click.confirm("Write this?", abort=True, err=True)
        done: Facts = {}
        if change.is_any:
            after = mend_role(db, change)
            done["role_file"] = {"role": after.role, "term": after.term, "primary": after.primary}
        if lease_term is not None and store is not None:
            lease = mend_lease(store, term=lease_term, holder=holder, address=address, lease_s=lease_time)
            done["lease"] = {"term": lease.term, "holder": lease.holder, "address": lease.address}
    audit.record("repaired", user(), database=str(db), **done)
    click.echo(json.dumps(done) if as_json else _shown(done))


@contextmanager
def _opened(archive: str | None) -> Iterator[Store | None]:
    if archive is None:
        yield None
        return
    with open_store(archive) as store:
        yield store


def _warnings(facts: Facts, change: Change) -> list[str]:
    newest = newest_term(facts)
    found = []
    if change.term is not None and change.term < newest:
        found.append(f"this node has transactions of term {newest}: as term {change.term} it is not followed by others")
    if change.role == PRIMARY:
        found.append("if another node is the primary, there are two then: look at it first")
    return found


def _shown(facts: Facts) -> str:
    """One line each, nested names with a dot."""
    return "\n".join(f"{name:24} {value}" for name, value in _flat(facts))


def _flat(facts: Facts, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None or value == "" else value
