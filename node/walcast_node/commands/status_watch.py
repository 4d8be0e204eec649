"""`walcast status --watch`: the same status again and again, also while nobody answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from walcast.errors import WalcastError
from walcast.facts import SCHEMA_VERSION
from walcast_node.commands.printing import plain
from walcast_node.commands.status_facts import Facts
from walcast_node.commands.status_table import table

UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Look:
    """One look. `facts` are the newest there are, None: there never were any; `error`: why there are no newer ones, and
    `since` when."""

    facts: Facts | None
    error: str = ""
    since: str = ""

    def as_json(self, target: str) -> Facts:
        """One shape, whether somebody answered or not."""
        if not self.error and self.facts is not None:
            return self.facts
        node = {"schema_version": SCHEMA_VERSION, "role": "", "state": UNREACHABLE, "since": self.since, "term": 0}
        return node | {"databases": [], "target": target, "error": self.error}

    def shown(self, target: str, columns: int) -> Group:
        """For people."""
        parts: list[object] = []
        if self.error:
            parts.append(plain(f"{target}: {UNREACHABLE} since {self.since}: {self.error}", style="bold"))
        if self.error and self.facts is not None:
            parts.append(Text("Before that:"))
        if self.facts is not None:
            parts.append(table(self.facts, columns))
        return Group(*parts)  # type: ignore[arg-type]


def looks(ask: Callable[[], Facts], interval_s: float) -> Iterator[Look]:
    """For ever. What goes wrong in asking is shown, not raised: what is watched may end, and come back."""
    facts: Facts | None = None
    since = ""
    while True:
        try:
            facts, error, since = ask(), "", ""
        except (WalcastError, OSError) as caught:
            error, since = str(caught), since or _now()
        yield Look(facts, error, since)
        time.sleep(interval_s)


def watch(ask: Callable[[], Facts], target: str, interval_s: float, *, as_json: bool) -> None:
    """Until interrupted. On a terminal in place; elsewhere one status after the other, each with its time."""
    console = Console()
    seen = looks(ask, interval_s)
    if as_json:
        for look in seen:
            click.echo(json.dumps(look.as_json(target)))
    if not console.is_terminal:
        for look in seen:
            console.print(Text(_now()), look.shown(target, console.width), sep="\n")
    with Live(console=console, auto_refresh=False) as live:
        for look in seen:
            live.update(look.shown(target, console.width), refresh=True)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
