"""The commands. Each parses, calls what does the work, and prints; nothing is decided here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from node.archive_commands import parse_txid
from node.config_command import config_command
from node.ls_command import ls_command
from node.options import JSON, PATH, Command, flag, tls_flags, tls_of
from node.primary_command import DEFAULT_LISTEN, primary_command
from node.process import run_until_signal
from node.restore_command import restore_command
from node.snapshot_command import snapshot_command
from node.verify_command import verify_command
from walcast import wire
from walcast.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="walcast")
def main() -> None:
    """Live read replicas, an archive and failover for SQLite, without changing the app."""


def command(name: str, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command of `walcast`, whose help ends with how it is typed."""
    epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in examples)
    return main.command(name, cls=Command, epilog=epilog)


@command("follower", "walcast follower /edge/app.db --primary 10.0.0.1:7420 --tls-ca ca.pem --archive s3://bucket/app")
@click.argument("db", type=PATH)
@flag("--primary", "primary_address", required=True, help="HOST:PORT of the primary.")
@flag("--archive", default=None, help="URL to bootstrap from.")
@flag("--name", default=None, help="Name of the database at the primary; the file's stem when not given.")
@flag("--id", "follower_id", default=None, help="This follower's id; made once and kept when not given.")
@flag("--replace", is_flag=True, help="Overwrite a database that is no replica.")
@tls_flags
@JSON
def follower(
    db: Path,
    primary_address: str,
    archive: str | None,
    name: str | None,
    follower_id: str | None,
    replace: bool,
    as_json: bool,
    **tls: Any,
) -> None:
    """Keep a database a live replica of a primary's."""
    from node.follower_role import FollowerSettings, run_follower

    settings = FollowerSettings(
        db, wire.Address.parse(primary_address), name, follower_id, archive, replace, tls_of(**tls)
    )

    def ready() -> None:
        facts = {"role": "follower", "path": str(db), "primary": primary_address}
        click.echo(json.dumps(facts) if as_json else f"following {primary_address} into {db}")

    run_until_signal(lambda stop: run_follower(settings, stop, ready))


@command("status", "walcast status 127.0.0.1:7420", "walcast status /edge/app.db --json")
@click.argument("target", default=DEFAULT_LISTEN)
@flag("--watch", is_flag=True, help="Show it again and again, until interrupted.")
@flag("--interval", default=0.5, type=click.FloatRange(min=0.05), help="Seconds between two looks.")
@tls_flags
@JSON
def status(target: str, watch: bool, interval: float, as_json: bool, **tls: Any) -> None:
    """Show where a primary and its followers are, or a replica."""
    from node.status import status_of, table

    credentials = tls_of(**tls)
    if not watch:
        facts = status_of(target, credentials)
        if as_json:
            click.echo(json.dumps(facts))
        else:
            Console().print(table(facts))
        return
    if as_json:
        while True:
            click.echo(json.dumps(status_of(target, credentials)))
            time.sleep(interval)
    with Live(table(status_of(target, credentials)), auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(table(status_of(target, credentials)), refresh=True)


@command("wait", "walcast wait /edge/app.db 00000000000004d2 --timeout 5")
@click.argument("db", type=PATH)
@click.argument("txid")
@flag("--timeout", default=10.0, type=click.FloatRange(min=0), help="Seconds to wait at most.")
def wait(db: Path, txid: str, timeout: float) -> None:
    """Wait until a replica has applied a TXID (16 hex digits), a position or a token."""
    from walcast.position import Position
    from walcast.replica import Replica

    try:
        token = txid if "-" in txid or "/" in txid else Position(parse_txid(txid))
        Replica(db).wait_for(token, timeout=timeout)
    except ValueError as error:
        raise ConfigError(str(error)) from error


main.add_command(primary_command)
main.add_command(config_command)
main.add_command(snapshot_command)
main.add_command(restore_command)
main.add_command(ls_command)
main.add_command(verify_command)


@command("demo", "walcast demo", "walcast demo --seconds 30 --keep")
@flag("--seconds", default=18.0, type=click.FloatRange(min=1, max=3600), help="How long the app writes, about.")
@flag("--keep", is_flag=True, help="Keep the folder with databases, archive and logs, and say where it is.")
@JSON
def demo(seconds: float, keep: bool, as_json: bool) -> None:
    """Show it: an app writing, a primary, two followers, a SIGKILL, a byte-for-byte comparison. Ends by itself."""
    from node.demo import run_demo

    sys.exit(0 if run_demo(seconds=seconds, keep=keep, as_json=as_json) else 1)


if __name__ == "__main__":
    main()
