"""The commands. Each parses, calls what does the work, and prints; nothing is decided here."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from node.options import CONFIG, JSON, PATH, command, fail, flag, tls_flags, tls_of
from node.process import run_until_signal
from walcast import wire
from walcast.errors import ConfigError, StaleReplica

DEFAULT_LISTEN = "127.0.0.1:7420"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="walcast")
def main() -> None:
    """Live read replicas, an archive and failover for SQLite, without changing the app."""


def example(*lines: str) -> str:
    """An epilog that shows how a command is typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@command(main, "primary")
@click.argument("db", type=PATH, required=False)
@click.argument("archive_url", required=False)
@flag("--listen", default=DEFAULT_LISTEN, help="HOST:PORT for followers; port 0 lets the system choose.")
@flag("--name", default=None, help="Name of the database; the file's stem when not given.")
@flag("--log-max-bytes", default=256 << 20, type=click.IntRange(min=1 << 20), help="Bound of the transaction log.")
@flag("--log-max-age", default=3600.0, type=click.FloatRange(min=1), help="Bound of the transaction log, seconds.")
@tls_flags
@CONFIG
@JSON
def primary(
    db: Path | None,
    archive_url: str | None,
    listen: str,
    name: str | None,
    log_max_bytes: int,
    log_max_age: float,
    config: Path | None,
    as_json: bool,
    **tls: Any,
) -> None:
    """Serve a database to followers, and archive it."""
    from node.primary_role import DatabaseSettings, Primary, PrimarySettings

    if config is not None:
        raise ConfigError("--config: not yet")
    if db is None:
        raise click.UsageError("give a database, or --config FILE")
    databases = [DatabaseSettings(db, name or db.stem, archive_url)]
    settings = PrimarySettings(
        databases,
        wire.Address.parse(listen),
        tls_of(**tls),
        log_bytes=log_max_bytes,
        log_age_s=log_max_age,
    )

    def ready(role: Primary) -> None:
        names = [d.name for d in databases]
        if as_json:
            click.echo(json.dumps({"role": "primary", "listen": str(role.listening), "databases": names}))
        else:
            click.echo(f"serving {', '.join(names)} on {role.listening}")

    async def role(stop: asyncio.Event) -> None:
        await Primary(settings).run(stop, ready)

    run_until_signal(role)


@command(main, "follower")
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


@command(main, "status")
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


@command(main, "wait")
@click.argument("db", type=PATH)
@click.argument("txid")
@flag("--timeout", default=10.0, type=click.FloatRange(min=0), help="Seconds to wait at most.")
def wait(db: Path, txid: str, timeout: float) -> None:
    """Wait until a replica has applied a TXID or token."""
    from walcast.replica import Replica

    Replica(db).wait_for(txid, timeout=timeout)


@command(main, "verify")
@click.argument("db", type=PATH)
@flag("--primary", "primary_address", required=True, help="HOST:PORT of the primary to compare with.")
@flag("--name", default=None, help="Name of the database at the primary; the file's stem when not given.")
@tls_flags
@JSON
def verify(db: Path, primary_address: str, name: str | None, as_json: bool, **tls: Any) -> None:
    """Prove a replica equal to its primary, page by page."""
    from follower.client import Client
    from follower.verify import Verified, verify_replica

    if not db.is_file():
        raise ConfigError(f"{db}: no such file")
    address = wire.Address.parse(primary_address)

    async def run() -> Verified:
        client = Client(address, tls_of(**tls), database=name or db.stem, follower_id="verify", guess=name is None)
        try:
            return await verify_replica(db, client)
        finally:
            await client.close()

    done = asyncio.run(run())
    if as_json:
        facts = {
            "equal": True,
            "pages": done.pages,
            "position": str(done.position),
            "primary_position": str(done.primary_position),
        }
        click.echo(json.dumps(facts))
    else:
        click.echo(f"equal: {done.pages} pages, replica at {done.position}, primary at {done.primary_position}")


if __name__ == "__main__":
    main()
