"""`walcast promote` and `walcast switchover`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from walcast import local, wire
from walcast_node.commands.options import DATABASE, JSON, Command, flag, tls_flags, tls_of
from walcast_node.commands.printing import say
from walcast_node.config.numbers import Seconds
from walcast_node.failover.lost_transactions import missing_words
from walcast_node.failover.switchover_request import switch_over

PROMOTE_S = 120.0


@click.command(
    "promote",
    cls=Command,
    epilog="\b\nExample:\n  walcast promote /edge/app.db\n  walcast promote /edge/app.db --force",
)
@click.argument("db", type=DATABASE)
@flag("--force", is_flag=True, help="The primary is gone for good: what only it had is lost to this set.")
@JSON
def promote_command(db: Path, force: bool, as_json: bool) -> None:
    """Make this follower the primary.

    The primary is asked to hand over, and nothing is lost. With --force it is not asked: this node catches up from the
    archive, waits until the primary's lease is over, and takes its place.
    """
    with local.ask(db, "promote", timeout_s=PROMOTE_S, force=force) as (facts, _):
        if as_json:
            click.echo(json.dumps(facts))
            return
        say(f"{db} is the primary, term {facts['term']}, from {facts['position']}")
        say(missing_words(facts))


@click.command(
    "switchover",
    cls=Command,
    epilog="\b\nExample:\n  walcast switchover 10.0.0.1:7420 --to edge-2",
)
@click.argument("primary")
@flag("--to", required=True, help="Id of the follower that takes over; `walcast status` shows them.")
@flag("--name", default="", help="Name of the database, where the primary serves several.")
@flag("--timeout", default=5.0, type=Seconds(0.1, 60), help="Seconds that writers may be held; else nothing.")
@tls_flags
@JSON
def switchover_command(primary: str, to: str, name: str, timeout: float, as_json: bool, **tls: Any) -> None:
    """Hand the primary's place to a follower; nothing is lost.

    Writers are held for a moment. When the follower does not take over in time nothing has happened, and they go on.
    """
    done = switch_over(wire.Address.parse(primary), to, tls_of(**tls), name=name, timeout_s=timeout)
    facts = {
        "primary": done.primary,
        "term": done.term,
        "position": str(done.position),
        "lost": 0,
        "pause_ms": done.pause_ms,
    }
    words = f"{to} at {done.primary} is the primary, term {done.term}; writers were held for {done.pause_ms} ms"
    click.echo(json.dumps(facts)) if as_json else say(words)
