"""Commands on an archive."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from node.config import Config, load_config
from node.options import CONFIG, JSON, PATH, Command, flag
from node.progress import Progress
from walcast.errors import ConfigError
from walcast.restore import RestoreReport, restore
from walcast.store import StoreSpec, open_store


def parse_timestamp(text: str) -> int:
    """RFC 3339, ms since the epoch; without a zone it is UTC. ConfigError for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no time: write it like 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def parse_txid(text: str) -> int:
    """A TXID as it is printed, 16 hex digits, or a position; ConfigError for anything else."""
    match = re.fullmatch(r"([0-9a-f]{16})(/[0-9a-f]{16})?", text)
    if match is None:
        raise ConfigError(f"{text!r} is no TXID: write its 16 hex digits, as `walcast status` prints them")
    return int(match[1], 16)


@click.command(
    "restore", cls=Command, epilog="\b\nExample:\n  walcast restore s3://bucket/app?region=eu-west-1 -o app.db"
)
@click.argument("url", metavar="URL|DB")
@flag("-o", "--output", type=PATH, default=None, help="The database file to write; DB itself with --config.")
@CONFIG
@flag("--timestamp", default=None, help="The newest state not after this time (RFC 3339).")
@flag("--txid", default=None, help="Exactly this TXID.")
@flag("--if-replica-exists", is_flag=True, help="Exit 0 when the archive is empty.")
@flag("--if-db-not-exists", is_flag=True, help="Exit 0 when the database exists.")
@flag("--force", is_flag=True, help="Replace an existing database.")
@flag("--dry-run", is_flag=True, help="Only say what would be done.")
@flag("--integrity-check", type=click.Choice(["none", "quick", "full"]), default="none", help="Let SQLite check it.")
@flag("--parallelism", type=click.IntRange(1, 64), default=4, help="Requests at once.")
@JSON
def restore_command(
    url: str,
    output: Path | None,
    config: Path | None,
    timestamp: str | None,
    txid: str | None,
    as_json: bool,
    integrity_check: Any,
    **options: Any,
) -> None:
    """Make a database from an archive, all or nothing."""
    where: str | StoreSpec = url
    if config is not None:
        where, output = _configured(load_config(config), Path(url)), output or Path(url)
    if output is None:
        raise click.UsageError("give -o, the database file to write")
    with open_store(where) as store:
        report = restore(
            store,
            output,
            txid=parse_txid(txid) if txid else None,
            timestamp_ms=parse_timestamp(timestamp) if timestamp else None,
            integrity_check=integrity_check,
            progress=Progress("restoring") if sys.stderr.isatty() else None,
            **options,
        )
    click.echo(json.dumps(_facts(report)) if as_json else _words(report))


def _configured(config: Config, path: Path) -> StoreSpec:
    """The archive that the configuration file gives the database at `path`."""
    for database in config.dbs:
        if database.path == path.absolute():
            if database.archive is None:
                raise ConfigError(f"{config.path}:{database.line}: {path} has no archive")
            return database.archive
    raise ConfigError(f"{config.path}: no database {path}")


def _facts(report: RestoreReport) -> dict[str, Any]:
    restored = report.restored
    return {
        "output": str(report.output),
        "skipped": report.skipped,
        "files": [{"key": f.key, "bytes": f.size, "level": f.level} for f in report.plan],
        "bytes": sum(f.size for f in report.plan),
        "position": str(restored.position) if restored else None,
        "pages": restored.commit_pages if restored else None,
        "page_size": restored.page_size if restored else None,
        "went_around": list(report.went_around),
    }


def _words(report: RestoreReport) -> str:
    if report.skipped:
        return f"nothing done: {report.skipped}"
    size = sum(f.size for f in report.plan)
    if report.restored is None:
        last = report.plan[-1]
        return f"would restore {report.output} to TXID {last.max_txid:016x} from {len(report.plan)} files, {size} bytes"
    around = f" (around {', '.join(report.went_around)})" if report.went_around else ""
    return f"restored {report.output} to {report.restored.position} from {len(report.plan)} files, {size} bytes{around}"
