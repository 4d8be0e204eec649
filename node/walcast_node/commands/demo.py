"""`walcast demo`."""

from __future__ import annotations

import sys

import click

from walcast_node.commands.options import JSON, Command, flag
from walcast_node.config.numbers import Seconds
from walcast_node.rehearsal.demo import run_demo

DEMO_EXAMPLES = """\
\b
Example:
  walcast demo
  walcast demo --seconds 30 --keep"""


@click.command("demo", cls=Command, epilog=DEMO_EXAMPLES)
@flag("--seconds", default=15.0, type=Seconds(min=1, max=3600), help="How long the app writes, about.")
@flag("--keep", is_flag=True, help="Keep the folder with databases, archive and logs, and say where it is.")
@JSON
def demo_command(seconds: float, keep: bool, as_json: bool) -> None:
    """Show it: an app writing, a primary, two followers, a failover, a comparison byte for byte. Ends by itself."""
    sys.exit(0 if run_demo(seconds=seconds, keep=keep, as_json=as_json) else 1)
