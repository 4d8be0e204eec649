"""`walcast status` and `walcast wait`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from walcast.errors import ConfigError
from walcast_node.commands.archive_arguments import parse_txid
from walcast_node.commands.options import DATABASE, DEFAULT_LISTEN, JSON, Command, flag, tls_flags, tls_of
from walcast_node.config.numbers import Seconds

WAIT_EXAMPLES = """\
\b
Example:
  walcast wait /edge/app.db 00000000000004d2 --timeout 5"""


@click.command(
    "status", cls=Command, epilog="\b\nExample:\n  walcast status 127.0.0.1:7420\n  walcast status /edge/app.db --json"
)
@click.argument("target", default=DEFAULT_LISTEN)
@flag("--watch", is_flag=True, help="Show it again and again, until interrupted.")
@flag("--interval", default=0.5, type=Seconds(min=0.05), help="Seconds between two looks.")
@tls_flags
@JSON
def status_command(target: str, watch: bool, interval: float, as_json: bool, **tls: Any) -> None:
    """Show a node by its address, or a database by its path: role, state and since when, position, lag, what is wrong
    and what to do about it.

    TXIDs are shown as 16 hex digits, as `wait` and --txid take them. With --json one shape for all, which
    docs/status.schema.json describes. --watch goes on while nobody answers.
    """
    from walcast_node.commands.status_facts import status_of
    from walcast_node.commands.status_table import table
    from walcast_node.commands.status_watch import watch as watch_status

    credentials = tls_of(**tls)
    if watch:
        watch_status(lambda: status_of(target, credentials), target, interval, as_json=as_json)
        return
    facts = status_of(target, credentials)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        console = Console()
        console.print(table(facts, console.width))


@click.command("wait", cls=Command, epilog=WAIT_EXAMPLES)
@click.argument("db", type=DATABASE)
@click.argument("txid")
@flag("--timeout", default=10.0, type=Seconds(min=0), help="Seconds to wait at most.")
def wait_command(db: Path, txid: str, timeout: float) -> None:
    """Wait until a replica has applied a TXID (16 hex digits), a position or a token."""
    from walcast.position import Position
    from walcast.replica import Replica

    try:
        token = txid if "-" in txid or "/" in txid else Position(parse_txid(txid))
        Replica(db).wait_for(token, timeout=timeout)
    except ValueError as error:
        raise ConfigError(str(error)) from error
