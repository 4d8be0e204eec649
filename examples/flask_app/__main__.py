"""Start it all on this machine: three regions, each with a database file, its walcast process and its app."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import click

from examples.flask_app.control import Control
from examples.flask_app.regions import Child, Region
from examples.flask_app.seeds import plant
from examples.flask_app.stage import Stage
from walcast.errors import WalcastError

START_S = 40.0
LOOK_S = 0.05


class Failed(Exception):
    """It could not start: why, in one line."""


@click.command(epilog="\b\nExample:\n  python -m examples.flask_app --workers 4")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep everything here.  [default: a temporary one]",
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="Processes of each app.")
@click.option("--threads", default=8, show_default=True, type=click.IntRange(2, 64), help="Threads of each process.")
@click.option(
    "--lease-time",
    default=3.0,
    show_default=True,
    type=click.FloatRange(1, 60),
    help="Seconds until another region takes over.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one line of JSON.")
def main(folder: Path | None, workers: int, threads: int, lease_time: float, as_json: bool) -> None:
    """Marginalia in three regions, until Ctrl-C."""
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    with ExitStack() as stack:
        if folder is None:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="marginalia-", ignore_cleanup_errors=True))
            )
        try:
            stage = Stage(folder.absolute(), lease_s=lease_time, workers=workers, threads=threads)
            stack.callback(end, stage)
            key = f"key-{secrets.token_urlsafe(24)}"
            control = Control(stage, key)
            stack.callback(control.close)
            start(stage, control.url, key, over)
        except (Failed, WalcastError, OSError) as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        if not over.is_set():
            say(stage, control.url, key, folder, as_json)
        keep(stage, over)


def start(stage: Stage, control_url: str, key: str, over: threading.Event) -> None:
    """Until every region serves its app and has what the primary has. Failed when a process ends, or after too long."""
    if not stage.regions[0].database.exists():  # a folder that was used before goes on where it was
        plant(stage.regions[0].database, stage.regions[0].name)
    stage.settings = {
        "SECRET_KEY": f"key-{secrets.token_urlsafe(24)}",  # a word, not a number: these settings are read as JSON
        "REGIONS": json.dumps({region.name: region.url for region in stage.regions}),
        "LAB_URL": control_url,
        "LAB_KEY": key,
        # Only by these names, so that no other name that leads here can be used to get round the same-origin rule.
        "TRUSTED_HOSTS": json.dumps(["127.0.0.1", "localhost"]),
    }
    for region in stage.regions:
        region.start_node(stage.archive, stage.lease_s)
        region.start_app(stage.settings, stage.workers, stage.threads)
    waiting = list(stage.regions)
    end_s = time.monotonic() + START_S
    while not over.is_set():
        nodes = [region.node_is_ready() for region in stage.regions]
        if all(nodes) and stage.is_level():
            waiting = [region for region in waiting if not answers(region)]
            if not waiting:
                return
        for child in (child for region in stage.regions for child in region.children):
            if child.exit_code is not None:
                raise Failed(f"{child.what} ended: {child.last_words()}")
        if time.monotonic() > end_s:
            raise Failed(
                f"not all regions were up within {START_S:g} s; logs are in {stage.archive.parent} with --folder"
            )
        over.wait(LOOK_S)


def answers(region: Region) -> bool:
    """Does its app serve the list?"""
    connection = HTTPConnection("127.0.0.1", region.port, timeout=5.0)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def say(stage: Stage, control_url: str, key: str, folder: Path, as_json: bool) -> None:
    """Where everything is."""
    if as_json:
        regions = {region.name: region.url for region in stage.regions}
        click.echo(json.dumps({"regions": regions, "control": control_url, "key": key, "folder": str(folder)}))
        return
    primary = stage.primary()
    click.echo("\n  Marginalia, in three regions\n")
    for region in stage.regions:
        role = "primary" if region is primary else "replica"
        click.echo(f"    {region.name:<12}{region.url:<26}{role}")
    click.echo(
        f"\n    Behind the page: {stage.regions[0].url}/lab\n    Files and logs:  {folder}\n\n  Ctrl-C ends it.\n"
    )


def keep(stage: Stage, over: threading.Event) -> None:
    """Until it is over; say so when a process ends that nobody killed."""
    told: set[Child] = set()
    while not over.wait(0.5):
        for child in (child for region in stage.regions for child in region.children):
            if child.exit_code is not None and not child.was_killed and child not in told:
                told.add(child)
                click.echo(
                    f"warning: {child.what} ended by itself, exit code {child.exit_code}: {child.last_words()}",
                    err=True,
                )


def end(stage: Stage) -> None:
    """All processes, the edges first, so that nobody has to find out that its primary is gone."""
    for region in [*stage.regions[1:], stage.regions[0]]:
        region.ask_to_end()
    for region in stage.regions:
        region.wait()
    stage.gates.close()


if __name__ == "__main__":
    main()
