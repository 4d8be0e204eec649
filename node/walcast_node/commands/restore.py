"""`walcast restore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from walcast.archive import ArchiveEmpty, ArchiveFile, TxidNotAvailable
from walcast.archive.clocks import ClockStep
from walcast.errors import ConfigError
from walcast.moment import format_moment
from walcast.permissions import OWNER_ONLY
from walcast.position import format_txid
from walcast.restore import RestoreReport, restore
from walcast.restore.restoring import clock_steps_at
from walcast.statedir import behind_link, in_use
from walcast.store import Store, open_store
from walcast_node.commands.archive_arguments import (
    archive_of,
    check_there,
    columns,
    parse_timestamp,
    parse_txid,
    size_text,
    time_text,
)
from walcast_node.commands.options import CONFIG, JSON, PATH, Command, flag, mode_flag
from walcast_node.commands.printing import say
from walcast_node.commands.progress import progress_of
from walcast_node.config.configuration import load_config
from walcast_node.config.numbers import Whole

EXAMPLES = (
    "walcast restore s3://bucket/app?region=eu-west-1 -o app.db",
    "walcast restore s3://bucket/app -o yesterday.db --timestamp 2026-01-31T12:00:00Z",
    "walcast restore s3://bucket/app -o app.db --if-db-not-exists --if-replica-exists && exec app",
)


@click.command("restore", cls=Command, epilog="\b\nExample:\n" + "\n".join(f"  {line}" for line in EXAMPLES))
@click.argument("url", metavar="URL|DB")
@flag("-o", "--output", type=PATH, default=None, help="The database file to write; DB itself with --config.")
@CONFIG
@flag("--timestamp", default=None, help="The newest state not after this time: RFC 3339, UTC without a zone.")
@flag("--txid", default=None, help="Exactly this TXID.")
@flag("--if-replica-exists", is_flag=True, help="Exit 0 when the archive is empty.")
@flag("--if-db-not-exists", is_flag=True, help="Exit 0 when the database exists.")
@flag("--force", is_flag=True, help="Replace an existing database, and its -wal, -shm and -journal.")
@flag("--dry-run", is_flag=True, help="Only say what would be done.")
@flag("--integrity-check", type=click.Choice(["none", "quick", "full"]), default="none", help="Let SQLite check it.")
@flag("--parallelism", type=Whole(1, 64), default=16, help="Requests at once.")
@mode_flag
@JSON
def restore_command(
    url: str,
    output: Path | None,
    config: Path | None,
    timestamp: str | None,
    txid: str | None,
    as_json: bool,
    integrity_check: Any,
    mode: int | None,
    **options: Any,
) -> None:
    """Make a database from an archive, all or nothing.

    To its newest state, or to that of --timestamp or --txid. There is no file at the output path until it is whole and
    its checksums are right. Damaged or missing files of the archive are gone around where others have the same
    transactions; otherwise the error names them.

    Progress goes to standard error: a bar on a terminal, elsewhere a line every five seconds of a longer restore, and
    nothing with --json.
    """
    where = archive_of(url, config)
    if output is None and config is not None:
        output = Path(url)
    if output is None:
        raise click.UsageError("give -o, the database file to write")
    if timestamp and txid:
        raise click.UsageError("give --timestamp or --txid, not both")
    timestamp_ms = parse_timestamp(timestamp) if timestamp else None
    listed = load_config(config).database(Path(url)) if config is not None and mode is None else None
    if listed is not None:
        mode = listed.mode
    if options["force"] and not options["dry_run"] and output.exists() and in_use(behind_link(output)):
        raise ConfigError(f"{output}: a walcast process runs for it: stop that and the app first")
    with open_store(where) as store, progress_of("restoring", quiet=as_json) as progress:
        report = _restored(
            store,
            output,
            txid=parse_txid(txid) if txid else None,
            timestamp_ms=timestamp_ms,
            integrity_check=integrity_check,
            progress=progress,
            mode=OWNER_ONLY if mode is None else mode,
            **options,
        )
    click.echo(json.dumps(_facts(report, timestamp_ms))) if as_json else say(_words(report, timestamp_ms))


def _restored(store: Store, output: Path, **options: Any) -> RestoreReport:
    """As `restore`; where there is nothing to restore from, the message names the archive."""
    try:
        return restore(store, output, **options)
    except ArchiveEmpty as error:
        check_there(store)
        raise ArchiveEmpty(f"{store.url}: {error}") from error
    except TxidNotAvailable as error:
        asked_ms = options["timestamp_ms"]
        steps = () if asked_ms is None else clock_steps_at(store, asked_ms)
        if not steps:
            raise
        raise TxidNotAvailable("; ".join([str(error), *map(_step_words, steps)]), txid=error.txid) from error


def _facts(report: RestoreReport, timestamp_ms: int | None) -> dict[str, Any]:
    reached = report.restored or report.planned
    return {
        "output": str(report.output),
        "dry_run": report.restored is None and not report.skipped,
        "skipped": report.skipped,
        "asked_time": None if timestamp_ms is None else format_moment(timestamp_ms),
        "files": [_file_facts(file, time_ms) for file, time_ms in _timed(report)],
        "bytes": sum(file.size for file in report.plan),
        "position": _position(report) if reached else None,
        "txid": format_txid(reached.position.txid) if reached and reached.position.txid else None,
        "time": format_moment(reached.timestamp_ms) if reached else None,
        "pages": reached.commit_pages if reached else None,
        "page_size": reached.page_size if reached else None,
        "went_around": list(report.went_around),
        "obstacle": report.obstacle,
        "clock_set_back": [
            {
                "seconds": step.back_ms / 1000,
                "from": format_moment(step.from_ms),
                "until": format_moment(step.until_ms),
            }
            for step in report.clock_steps
        ],
    }


def _file_facts(file: ArchiveFile, timestamp_ms: int | None) -> dict[str, Any]:
    return {
        "key": file.key,
        "bytes": file.size,
        "level": file.level,
        "min_txid": format_txid(file.min_txid),
        "max_txid": format_txid(file.max_txid),
        "time": None if timestamp_ms is None else format_moment(timestamp_ms),
    }


def _timed(report: RestoreReport) -> list[tuple[ArchiveFile, int | None]]:
    """The plan's files with the times of their transactions, which only a dry run reads."""
    times = report.planned.times_ms if report.planned else [None] * len(report.plan)
    return list(zip(report.plan, times, strict=True))


def _position(report: RestoreReport) -> str | None:
    """Where the database is, or would be: a dry run knows no checksum where the files carry none."""
    if report.restored:
        return str(report.restored.position)
    position = report.planned.position if report.planned else None
    return str(position) if position and position.checksum else None


def _words(report: RestoreReport, timestamp_ms: int | None) -> str:
    if report.skipped:
        return f"nothing done: {report.skipped}"
    size = size_text(sum(file.size for file in report.plan))
    around = f" (around {', '.join(report.went_around)})" if report.went_around else ""
    files = f"{len(report.plan)} file{'s' if len(report.plan) != 1 else ''}, {size}"
    if report.restored is not None:
        time = time_text(report.restored.timestamp_ms)
        done = f"restored {report.output} to {report.restored.position}, {time}, from {files}{around}"
        return "\n".join([done, *map(_step_words, report.clock_steps)])
    lines = [_table(report)]
    if timestamp_ms is not None:
        lines.append(f"as of {format_moment(timestamp_ms)}:")
    lines.append(f"would restore {report.output}{_goal(report)} from {files}{around}")
    if report.obstacle:
        lines.append(f"but {report.obstacle}")
    lines += map(_step_words, report.clock_steps)
    return "\n".join(lines)


def _step_words(step: ClockStep) -> str:
    return (
        f"the primary's clock was set back by {step.back_ms / 1000:g} s to {format_moment(step.from_ms)}, and until"
        f" {format_moment(step.until_ms)} its transactions have later times than the clock showed: some that were"
        " committed at the asked time by that clock are not in this state; walcast ls --files lists the TXIDs, and"
        " --txid restores to exactly one"
    )


def _goal(report: RestoreReport) -> str:
    planned = report.planned
    if planned is None:
        return ""
    position = _position(report) or format_txid(planned.position.txid)
    size = size_text(planned.commit_pages * planned.page_size)
    return f" to {position}, {time_text(planned.timestamp_ms)}, a database of {size},"


def _table(report: RestoreReport) -> str:
    if report.planned is None:  # Litestream 0.3: no TXIDs, times of the store
        old = [(file.key, format_moment(file.timestamp_ms), f"{file.size:,}") for file in report.plan]
        return columns([("file", "uploaded", "bytes"), *old], right="2")
    rows = [
        (str(file.level), format_txid(file.min_txid), format_txid(file.max_txid), time_text(time_ms), f"{file.size:,}")
        for file, time_ms in _timed(report)
    ]
    return columns([("level", "from TXID", "to TXID", "time", "bytes"), *rows], right="04")
