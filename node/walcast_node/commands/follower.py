"""`walcast follower`: flags → a node that follows, and may be promoted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from walcast.permissions import OWNER_ONLY
from walcast.wire import Address
from walcast_node.commands.failover_flags import addresses, app_urls, failover_flags, member_settings
from walcast_node.commands.options import (
    CONFIG,
    JSON,
    PATH,
    TLS_FLAGS,
    Command,
    flag,
    http_flags,
    mode_flag,
    process_flags,
    scrub_bytes,
    scrub_flag,
    summary_flag,
    summary_seconds,
    tls_flags,
    tls_of,
)
from walcast_node.commands.printing import say
from walcast_node.config.configuration import Config, load_config
from walcast_node.config.failover import flags_over_file
from walcast_node.config.settings import (
    DEFAULT_LOG_AGE_S,
    DEFAULT_LOG_BYTES,
    STOP_TIMEOUT_S,
    DatabaseSettings,
    HostSettings,
)
from walcast_node.http.hosts import check_host_name
from walcast_node.process.host import Host
from walcast_node.process.run import serve

ANY_PORT = "127.0.0.1:0"


@click.command(
    "follower",
    cls=Command,
    epilog="\b\nExample:\n"
    "  walcast follower /edge/app.db --primary 10.0.0.1:7420 --tls-ca ca.pem --archive s3://bucket/app\n"
    "  walcast follower b/app.db --primary 127.0.0.1:7420 --archive /backup/app --auto-failover",
)
@click.argument("db", type=PATH)
@flag("--primary", "primary_address", required=True, help="HOST:PORT of the primary; several are separated by commas.")
@flag("--archive", default=None, help="Archive URL: the first copy is made from it, and it holds the lease.")
@flag(
    "--name", default=None, help="Name of the database at the primary.  [default: the file's name without its suffix]"
)
@flag(
    "--listen",
    default=None,
    help=f"HOST:PORT to serve on once this node is the primary; port 0: any free port.  [default: {ANY_PORT}]",
)
@http_flags
@flag("--replace", is_flag=True, help="Overwrite a database at DB that is not a replica.")
@mode_flag
@process_flags
@scrub_flag
@summary_flag
@failover_flags
@tls_flags
@CONFIG
@JSON
def follower_command(
    db: Path,
    primary_address: str,
    archive: str | None,
    name: str | None,
    listen: str | None,
    http: str | None,
    http_hosts: tuple[str, ...],
    replace: bool,
    mode: int | None,
    scrub_mb_per_s: float | None,
    command: str | None,
    stop_timeout: float | None,
    log_summary_s: float | None,
    config: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Keep the file DB a live replica of a primary's database.

    The first copy comes from the archive, if one is given, else from the primary. While the primary cannot be reached
    apps read what is there, and the follower tries again by itself. Apps read the file as any SQLite database; a write
    here ends with "database is locked". To make this node the primary: `walcast promote DB`.
    """
    told = load_config(config) if config is not None else Config(Path())
    flags = flags_over_file(flags, told.failover)
    app_url, allowed = app_urls(flags)
    tls = tls_of(**{key: flags.pop(key) for key in TLS_FLAGS})
    primaries = addresses(primary_address)
    listed = told.database(db)
    if mode is None and listed is not None:
        mode = listed.mode
    database = DatabaseSettings(
        db,
        name or (listed.name if listed else db.stem),
        archive or (listed.archive if listed else None),
        listed.policy if listed else told.policy,
        mode=OWNER_ONLY if mode is None else mode,
    )
    member = member_settings(database, "follower", primaries=primaries, guess=name is None, replace=replace, **flags)
    for address in primaries:
        tls.channel(address)
    settings = HostSettings(
        [],
        Address.parse(listen) if listen else told.listen or Address.parse(ANY_PORT),
        tls=tls,
        http=Address.parse(http) if http else told.http,
        log_bytes=told.log_max_bytes or DEFAULT_LOG_BYTES,
        log_age_s=told.log_max_age_s or DEFAULT_LOG_AGE_S,
        http_hosts=tuple(map(check_host_name, http_hosts)) or told.http_hosts,
        members=(member,),
        app_url=app_url,
        access=told.access,
        trust_user=told.trust_user,
        file=config,
        reflect=told.reflect,
        app_urls=allowed,
        scrub_bytes_per_s=scrub_bytes(scrub_mb_per_s, told.scrub_bytes_per_s),
        command=command or told.command,
        stop_timeout_s=stop_timeout or told.stop_timeout_s or STOP_TIMEOUT_S,
        summary_s=summary_seconds(log_summary_s, told.log_summary_s),
    )

    def ready(host: Host) -> None:
        status = host.members[0].status()
        facts = {
            "role": status.role,
            "path": str(db),
            "primary": status.primary,
            "listen": str(host.listening),
            "http": str(host.http_listening) if host.http_listening else None,
        }
        what = f"following {status.primary} into {db}" if status.role == "follower" else f"{db}: {status.role}"
        click.echo(json.dumps(facts)) if as_json else say(what)

    sys.exit(serve(settings, ready))
