"""`walcast drill`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from walcast.errors import ConfigError
from walcast_node.commands.options import CONFIG, JSON, PATH, Command, flag
from walcast_node.config.numbers import Number, Seconds

if TYPE_CHECKING:
    from walcast_node.rehearsal.drill.facts import Result

EXAMPLES = """\b
Example:
  walcast drill
  walcast drill --lease-time 10 --html report.html
  walcast drill --archive s3://bucket/drills --json > report.json
  walcast drill --config walcast.yml --confirm"""


@click.command("drill", cls=Command, epilog=EXAMPLES)
@flag("--lease-time", default=3.0, type=Seconds(1, 600), help="Seconds a primary has to renew its lease in.")
@flag("--rate", default=200.0, type=Number(1, 5000), help="Rows that the app writes a second.")
@flag("--archive", default=None, help="URL below which the set has its archive; a folder of its own if not given.")
@flag("--directory", type=PATH, default=None, help="Where the set lives; a temporary folder if not given.")
@flag("--keep", is_flag=True, help="Keep databases, archive and logs, and say where they are.")
@flag("--html", type=PATH, default=None, help="Write the report with a timeline to this file.")
@flag("--max-pause", default=250.0, type=Number(min=1), help="Milliseconds a switchover may hold writers.")
@flag("--slack", default=2.0, type=Seconds(min=0), help="Seconds beyond the lease until the next write.")
@flag("--confirm", is_flag=True, help="With --config: do it, to the set that runs.")
@flag("--name", default=None, help="With --config: the database, when the file has several.")
@CONFIG
@JSON
def drill_command(
    lease_time: float,
    rate: float,
    archive: str | None,
    directory: Path | None,
    keep: bool,
    html: Path | None,
    max_pause: float,
    slack: float,
    confirm: bool,
    name: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Rehearse a failover and report it.

    Makes a replica set of three nodes on this machine, writes to it, and keeps a ledger of what was committed and what
    was acknowledged. Then: a switchover, a kill -9 of the primary, a partition, a SIGSTOP of the holder of the lease;
    after each the node before rejoins, and all copies are compared. Last, a primary with a follower of its own loses
    power. The report says how long it took to detect, to promote, to the first write; how long nobody could write; what
    was lost and where it is kept; who re-attached; and of each promise whether it was kept. Exit code 1 when one was
    not.

    With --config FILE --confirm the set that runs by this file hands over to a follower and back, and nothing else.

    --json prints: passed, promises [{key, step, words, kept, evidence}], steps [{key, old, new, term, detect_ms,
    promote_ms, first_write_ms, pause_ms, fenced_ms, rejoin_ms, lost, kept_rows, kept_in, attached [{node, after_ms,
    copied_pages, bytes}]}], committed, acknowledged, lost, spans and marks of the timeline in seconds, failure.
    """
    from rich.console import Console

    from walcast_node.commands.printing import plain
    from walcast_node.rehearsal.drill.page import page
    from walcast_node.rehearsal.drill.words import report

    console = Console(stderr=as_json, highlight=False)

    def say(text: str) -> None:
        console.print(plain(text, style="dim"), soft_wrap=True)

    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"{html}: there is no such folder to write to")
    if config is not None:
        result = _running(config, name, confirm, max_pause, say)
    elif confirm or name is not None:
        raise click.UsageError("--confirm and --name are for a set that runs: give its --config FILE")
    else:
        from walcast.store import parse_url
        from walcast_node.rehearsal.drill.drill import run_drill
        from walcast_node.rehearsal.drill.stage import Settings

        settings = Settings(lease_s=lease_time, rate=rate, max_pause_ms=max_pause, slack_s=slack)
        place = parse_url(archive) if archive else None
        result = run_drill(settings, directory, place, keep=keep or directory is not None, say=say)
    if html is not None:
        html.write_text(page(result), encoding="utf-8")
    console.print(report(result))
    if html is not None:
        say(f"  report: {html}")
    if result.folder:
        say(f"  kept: {result.folder}")
    if as_json:
        click.echo(json.dumps(result.facts()))
    sys.exit(0 if result.passed else 1)


def _running(config: Path, name: str | None, confirm: bool, max_pause: float, say: Callable[[str], None]) -> Result:
    from walcast_node.config.configuration import load_config
    from walcast_node.rehearsal.drill.running import Limits, drill_running, target_of, would_do

    target = target_of(load_config(config), name)
    if not confirm:
        for line in would_do(target):
            say(line)
        sys.exit(2)
    return drill_running(target, Limits(max_pause), say)
