"""`walcast follower`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from node.follower_role import FollowerSettings, run_follower
from node.options import JSON, PATH, Command, flag, tls_flags, tls_of
from node.process import run_until_signal
from walcast import wire


@click.command(
    "follower",
    cls=Command,
    epilog="\b\nExample:\n  walcast follower /edge/app.db --primary 10.0.0.1:7420 --tls-ca ca.pem --archive s3://bucket/app",
)
@click.argument("db", type=PATH)
@flag("--primary", "primary_address", required=True, help="HOST:PORT of the primary.")
@flag("--archive", default=None, help="URL to bootstrap from.")
@flag("--name", default=None, help="Name of the database at the primary; the file's stem when not given.")
@flag("--id", "follower_id", default=None, help="This follower's id; made once and kept when not given.")
@flag("--replace", is_flag=True, help="Overwrite a database that is no replica.")
@tls_flags
@JSON
def follower_command(
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
    settings = FollowerSettings(
        db, wire.Address.parse(primary_address), name, follower_id, archive, replace, tls_of(**tls)
    )

    def ready() -> None:
        facts = {"role": "follower", "path": str(db), "primary": primary_address}
        click.echo(json.dumps(facts) if as_json else f"following {primary_address} into {db}")

    run_until_signal(lambda stop: run_follower(settings, stop, ready))
