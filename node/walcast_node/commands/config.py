"""`walcast config check FILE`: what walcast understands of a configuration file, without secrets."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import yaml

from walcast.errors import ConfigError
from walcast.filesystem import check_database_file, is_missing
from walcast.oserrors import at_path
from walcast.redaction import redact
from walcast.secret import HIDDEN, Secret
from walcast.store import S3Spec, StoreSpec
from walcast_node.commands.options import JSON, PATH, Command
from walcast_node.commands.primary import settings_by
from walcast_node.config.configuration import Config, DatabaseConfig, FolderConfig, load_config
from walcast_node.process import preflight
from walcast_node.process.open_inodes import Inodes
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))

Facts = dict[str, Any]


@click.group("config")
def config_command() -> None:
    """Look at configuration files."""


@config_command.command(
    "check",
    cls=Command,
    epilog="\b\nExample:\n  walcast config check walcast.yml\n  walcast config check walcast.yml --json",
)
@click.argument("file", type=PATH)
@JSON
def check(file: Path, as_json: bool) -> None:
    """Read a configuration file and print what it means: databases, folders and what is in them, archives and how they
    are kept, and which keys have no effect. Secrets are shown as ***. The exit code is 1 when `walcast primary` would
    not serve all of it: a database that is missing or is none, certificates that cannot be read, a name given twice."""
    config = load_config(file)
    found = facts(config)
    if as_json:
        click.echo(json.dumps(_plain(found)))
    else:
        click.echo(yaml.safe_dump(_words(found), sort_keys=False, allow_unicode=True, width=1000), nl=False)
    refused = problems(found)
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ConfigError(f"{file}: {refused[0]}{more}")


def problems(found: Facts) -> list[str]:
    """All that keeps something from being served, in the order of the file."""
    parts = [*found["databases"], *found["folders"], *(one for f in found["folders"] for one in f["databases"])]
    said = [found["problem"]] if found["problem"] else []
    return said + [
        f"line {one['line']}: {one['problem']}" if "line" in one else one["problem"]
        for one in parts
        if "problem" in one
    ]


def _whole(config: Config) -> str | None:
    """What `walcast primary` refuses before it looks at any database."""
    if not config.dbs and not config.folders:
        return "no databases: give some under dbs"
    try:
        problem = next(preflight.problems(settings_by(config.path)), None)
    except ConfigError as error:
        problem = str(error)
    return problem and redact(problem)


def facts(config: Config) -> Facts:
    """What the file means. Durations have names that end with `_s`; `problem` says why something cannot be served."""
    names: dict[str, Path] = {}
    tls = config.tls
    return {
        "file": str(config.path),
        "listen": config.listen and str(config.listen),
        "http": config.http and str(config.http),
        "http_hosts": list(config.http_hosts),
        "log_level": config.log_level,
        "log_format": config.log_format,
        "exec": config.command and redact(shlex.split(config.command)[0]),  # its arguments may have a password
        "stop_timeout_s": config.stop_timeout_s,
        "wait_for_db_s": config.wait_for_db_s,
        "log_summary_s": config.log_summary_s,
        "tls": {
            "ca": _text(tls.ca),
            "peer_ca": _text(tls.peer_ca),
            "client_ca": _text(tls.client_ca),
            "cert": _text(tls.cert),
            "key": _text(tls.key),
            "client_auth": "required" if tls.client_auth else "none",
            "insecure": tls.insecure,
        },
        "token_file": _text(tls.token_file),
        "log_max_bytes": config.log_max_bytes,
        "log_max_age_s": config.log_max_age_s,
        "scrub_bytes_per_second": config.scrub_bytes_per_s,
        "heartbeat": {"url": _origin(config.heartbeat_url), "interval_s": config.heartbeat_interval_s}
        if config.heartbeat_url
        else None,
        "failover": config.failover.facts(),
        "databases": [_database(one, names, _waits(config)) | _kept(one.archive, one.policy) for one in config.dbs],
        "folders": [_folder(one, config, names) for one in config.folders],
        "problem": _whole(config),
        "ignored": [{"key": one.key, "line": one.line} for one in config.ignored],
    }


def _waits(config: Config) -> bool:
    """Is the app to make a database that is missing?"""
    return bool(config.command) if config.wait_for_db_s is None else config.wait_for_db_s > 0


def _database(config: DatabaseConfig, names: dict[str, Path], waits: bool = False) -> Facts:
    found: Facts = {"name": config.name, "path": str(config.path), "line": config.line}
    if config.restore:
        found["restore_if_db_not_exists"] = True
    if config.continue_archive:
        found["continue_archive"] = True
    taken = names.setdefault(config.name, config.path)
    if taken != config.path:
        found["problem"] = f"the name is already that of {taken}"
        return found
    try:
        if not ((config.restore or waits) and is_missing(config.path)):
            check_database_file(config.path)
    except ConfigError as error:
        found["problem"] = str(error)
    except OSError as error:
        found["problem"] = at_path(error, config.path)
    return found


def _folder(config: FolderConfig, whole: Config, names: dict[str, Path]) -> Facts:
    """A folder, and what is in it right now."""
    folder = config.folder
    found: Facts = {
        "dir": str(folder.dir),
        "pattern": folder.pattern,
        "recursive": folder.recursive,
        "watch": config.watch,
        "name": config.prefix,
        "line": config.line,
        **_kept(config.archive.spec if config.archive else None, config.policy),
    }
    listed = {one.path.resolve() for one in whole.dbs}
    try:
        there = folder.scan(Inodes())
    except OSError as error:
        return found | {"databases": [], "problem": f"{folder.dir}: {error.strerror}"}
    databases: list[Facts] = []
    for path in there.databases:
        if path.resolve() in listed:
            continue
        try:
            one = config.database(path)
        except ConfigError as error:
            databases.append({"path": str(path), "problem": str(error)})
            continue
        databases.append(_database(one, names) | {"archive": one.archive.url if one.archive else None})
    if not databases and not config.watch:
        found["problem"] = f"no SQLite database matches {folder.pattern!r} now"
    return found | {"databases": databases, "waiting": [str(path) for path, _ in there.waiting]}


def _kept(archive: StoreSpec | None, policy: ArchivePolicy) -> Facts:
    """Where an archive is and how it is kept; which secrets there are, not what they say."""
    if archive is None:
        return {"archive": None}
    secrets: Facts = {}
    if isinstance(archive, S3Spec):
        given = {
            "access_key_id": archive.access_key_id,
            "secret_access_key": archive.secret_access_key,
            "sse_customer_key": archive.sse_customer_key,
        }
        secrets = {name: HIDDEN for name, value in given.items() if value}
    return {"archive": archive.url, **secrets, "policy": asdict(policy)}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _origin(url: Secret) -> str:
    """Whom it is sent to; the rest of such a URL is what makes it one's own."""
    parts = urlsplit(url.reveal())
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/{HIDDEN}"


# As JSON, and for people


def _plain(value: Any) -> Any:
    """JSON has no infinity: None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value == math.inf else value


def _words(value: Any, key: str = "") -> Any:
    """Durations as they are written in the file; nothing where nothing was said."""
    if isinstance(value, dict):
        shown = {name: item for name, item in value.items() if item is not None and item != []}
        return {name.removesuffix("_s").replace("_", "-"): _words(item, name) for name, item in shown.items()}
    if isinstance(value, list | tuple):
        return [_words(item, key) for item in value]
    return _duration(value) if key.endswith("_s") else value


def _duration(seconds: float) -> str:
    """1h30m."""
    if seconds == math.inf:
        return "no limit of its own"
    out, left = "", seconds
    for unit, size in _UNITS[:-1]:
        count, left = divmod(left, size)
        out += f"{count:.0f}{unit}" if count else ""
    return out + (f"{left:g}s" if left or not out else "")
