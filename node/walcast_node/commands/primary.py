"""`walcast primary`: flags and configuration file → settings → a running primary."""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from walcast import wire
from walcast.errors import ConfigError
from walcast.planted import DanglingLink
from walcast.secret import Secret
from walcast.statedir import behind_link, state_dir
from walcast.terms import PRIMARY, read_standing
from walcast.wire import Address
from walcast_node.commands.failover_flags import app_urls, failover_flags, member_settings
from walcast_node.commands.options import (
    CONFIG,
    DEFAULT_LISTEN,
    JSON,
    LOG_FLAGS,
    PATH,
    TLS_FLAGS,
    Command,
    Wait,
    flag,
    hint_at_secret,
    http_flags,
    process_flags,
    scrub_bytes,
    scrub_flag,
    summary_flag,
    summary_seconds,
    tls_flags,
    tls_of,
)
from walcast_node.commands.printing import say
from walcast_node.config.configuration import NO_ARCHIVE, Config, DatabaseConfig, load_config
from walcast_node.config.failover import flags_over_file
from walcast_node.config.numbers import Seconds, Size
from walcast_node.config.settings import (
    DEFAULT_LOG_AGE_S,
    DEFAULT_LOG_BYTES,
    STOP_TIMEOUT_S,
    DatabaseSettings,
    HeartbeatSettings,
    HostSettings,
    settings_of,
)
from walcast_node.http.hosts import check_host_name
from walcast_node.process.host import Host
from walcast_node.process.ping import check_url
from walcast_node.process.run import serve

log = logging.getLogger("walcast.primary")

HEARTBEAT = (
    "GET this, again and again, while all is captured and archived in time. Better given as WALCAST_HEARTBEAT_URL or "
    "in the file: others can see a command line."
)

NAMES_SHOWN = 10
MISSED = ("mcp-addr", "socket")  # of Litestream: what others may talk to there, and not here
WAIT = (
    "How long to wait for a missing database: for the app to make it, and for an archive that cannot be reached.  "
    "[default: forever with --restore or --exec, else 0]"
)

EXAMPLES = """\b
Example:
  walcast primary app.db s3://bucket/app
  walcast primary app.db /backup/app --listen 127.0.0.1:7420
  walcast primary --config walcast.yml
  walcast primary app.db s3://bucket/app --restore --exec "gunicorn app:app" """


@click.command("primary", cls=Command, epilog=EXAMPLES)
@click.argument("db", type=PATH, required=False)
@click.argument("archive_url", required=False)
@flag("--listen", default=None, help=f"HOST:PORT for followers; port 0: any.  [default: {DEFAULT_LISTEN}]")
@http_flags
@flag("--name", default=None, help="Name of the database.  [default: the file's name without its suffix]")
@flag(
    "--log-max-bytes",
    default=None,
    type=Size(min=1 << 20),
    help="Most disk space of walcast's own log of transactions, as in 256MiB.  [default: 256 MiB]",
)
@flag("--heartbeat-url", default=None, help=HEARTBEAT)
@flag("--heartbeat-interval", default=None, type=Seconds(min=1), help="Seconds between two heartbeats.  [default: 300]")
@flag("--continue-archive", is_flag=True, help="Go on with an archive that belongs to another database.")
@flag(
    "--restore", "restore_missing", is_flag=True, help="If the database is missing, restore it from the archive first."
)
@flag("--wait-for-db", default=None, type=Wait(), help=WAIT)
@flag("--force", is_flag=True, help="Take over the lease of a primary that is gone for good.")
@failover_flags
@process_flags
@scrub_flag
@summary_flag
@flag(
    "--log-max-age",
    default=None,
    type=Seconds(min=1),
    help="How long walcast's own log keeps transactions, as in 1h.  [default: 3600]",
)
@tls_flags
@CONFIG
@JSON
def primary_command(db: Path | None, archive_url: str | None, as_json: bool, **flags: Any) -> None:
    """Serve databases to followers, and archive them.

    SIGTERM or SIGINT ends it in order: what was committed before is captured, sent to the followers that stream and
    archived, within --stop-timeout also where a follower or a store does not answer, and usually at once. The log says
    for each database what went out; the exit code is 1 if something is not archived. What apps commit meanwhile may or
    may not go out. A second signal ends it at once. SIGHUP reads certificates, tokens, and the file's access rules and
    log level again.
    """
    settings = _settings(db, archive_url, **flags)
    if settings.file is not None:
        _say_ignored(load_config(settings.file))
    hint_at_secret("heartbeat_url")

    def ready(role: Host) -> None:
        facts = {
            "role": role.status().role,
            "listen": str(role.listening),
            "http": str(role.http_listening) if role.http_listening else None,
            "databases": role.names,
            "awaited": role.awaited,
        }
        what = ", ".join(role.names) if 0 < len(role.names) <= NAMES_SHOWN else f"{len(role.names)} databases"
        words = f"serving {what} on {role.listening}"
        if role.awaited:
            words += f"; waiting for the app to make {', '.join(role.awaited[:NAMES_SHOWN])}"
        following = [said for member in role.members if (said := member.remembered_words())]
        click.echo(json.dumps(facts | {"following": following})) if as_json else say("\n".join([*following, words]))

    sys.exit(serve(settings, ready))


def settings_by(file: Path) -> HostSettings:
    """What this command makes of a configuration file alone; ConfigError where it refuses it."""
    with primary_command.make_context("primary", ["--config", str(file)]) as context:
        flags = {name: value for name, value in context.params.items() if name not in ("as_json", *LOG_FLAGS)}
        return _settings(**flags)


def _say_ignored(told: Config) -> None:
    for ignored in told.ignored:
        level = logging.WARNING if ignored.key in MISSED else logging.INFO
        facts = {"key": ignored.key, "line": ignored.line, "file": str(told.path)}
        log.log(level, "not used by walcast", extra=facts)


def _settings(
    db: Path | None,
    archive_url: str | None,
    *,
    config: Path | None,
    listen: str | None,
    http: str | None,
    http_hosts: tuple[str, ...],
    name: str | None,
    log_max_bytes: int | None,
    log_max_age: float | None,
    scrub_mb_per_s: float | None,
    log_summary_s: float | None,
    heartbeat_url: str | None,
    heartbeat_interval: float | None,
    continue_archive: bool,
    force: bool,
    restore_missing: bool,
    wait_for_db: float | None,
    command: str | None,
    stop_timeout: float | None,
    **more: Any,
) -> HostSettings:
    """Flags win over the file, the file over the defaults."""
    told = load_config(config) if config else Config(Path())
    more = flags_over_file(more, told.failover)
    databases, folders = [_one(d) if told.has_many else settings_of(d) for d in told.dbs], told.folders
    if db is not None:
        databases, folders = [DatabaseSettings(db, name or db.stem, archive_url, told.policy)], ()
    if continue_archive:
        if len(databases) != 1 or folders:
            raise click.UsageError("--continue-archive is for one database; in a configuration file say it of that one")
        databases = [replace(databases[0], continue_archive=True)]
    command = command or told.command
    wait_s = told.wait_for_db_s if wait_for_db is None else wait_for_db
    databases = [_first_boot(one, restore_missing, wait_s, bool(command)) for one in databases]
    if not databases and not folders:
        if config is not None:
            raise ConfigError(f"{config}: no databases: give some under dbs")
        raise click.UsageError("give a database, or --config FILE with some")
    url = Secret(heartbeat_url) if heartbeat_url else told.heartbeat_url
    if url:
        check_url(url)
        bare = [str(d.path) for d in databases if not d.archive] + [f.where for f in folders if not f.archive]
        if bare:
            raise ConfigError(f"{bare[0]}: {NO_ARCHIVE}")
    app_url, allowed = app_urls(more)
    flags = tls_of(**{key: more.pop(key) for key in TLS_FLAGS})
    members = tuple(
        member_settings(database, PRIMARY, force=force, guess=db is not None and name is None, **more)
        for database in databases
        if db is not None or more["auto_failover"] or _has_role(database.path)
    )
    if more["auto_failover"] and folders:
        raise ConfigError(f"{folders[0].where}: --auto-failover is for databases that are named, not for folders")
    databases = [database for database in databases if all(database is not member.database for member in members)]
    return HostSettings(
        databases,
        Address.parse(listen) if listen else told.listen or Address.parse(DEFAULT_LISTEN),
        tls=flags if flags != wire.Tls() else told.tls,
        http=Address.parse(http) if http else told.http,
        http_hosts=tuple(map(check_host_name, http_hosts)) or told.http_hosts,
        log_bytes=log_max_bytes or told.log_max_bytes or DEFAULT_LOG_BYTES,
        log_age_s=log_max_age or told.log_max_age_s or DEFAULT_LOG_AGE_S,
        scrub_bytes_per_s=scrub_bytes(scrub_mb_per_s, told.scrub_bytes_per_s),
        summary_s=summary_seconds(log_summary_s, told.log_summary_s),
        folders=folders,
        members=members,
        app_url=app_url,
        access=told.access,
        trust_user=told.trust_user,
        file=config,
        reflect=told.reflect,
        app_urls=allowed,
        heartbeat=HeartbeatSettings(url, heartbeat_interval or told.heartbeat_interval_s) if url else None,
        command=command,
        stop_timeout_s=stop_timeout or told.stop_timeout_s or STOP_TIMEOUT_S,
    )


def _first_boot(database: DatabaseSettings, restore: bool, wait_s: float | None, has_app: bool) -> DatabaseSettings:
    """What is to be done where the database is missing. An archive that may be empty, and an app that is started from
    here, say that the app makes it."""
    restore = restore or database.restore
    if restore and not database.archive:
        raise ConfigError(f"{database.path}: --restore needs an archive to restore it from")
    if wait_s is None:
        wait_s = math.inf if restore or has_app else 0.0
    return replace(database, restore=restore, wait_s=wait_s)


def _one(config: DatabaseConfig) -> DatabaseSettings:
    """One of several. A link to nothing is a database that is not there yet, as a volume that is mounted later; one
    that this process may not look at is told by itself."""
    try:
        return settings_of(config)
    except (DanglingLink, OSError):
        return settings_of(replace(config, path=behind_link(config.path)))


def _has_role(path: Path) -> bool:
    """Has it one from before? Also where that cannot be read, which is said when the database is to be served."""
    try:
        return read_standing(state_dir(path)) is not None
    except (ConfigError, OSError):
        return True
