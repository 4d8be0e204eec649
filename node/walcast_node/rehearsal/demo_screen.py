"""What people see of the demo: phases in words, a table, plain lines, a verdict. Facts in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from walcast.statusfile import Status

VICTIM = "edge-2"
WIDE = 104
STYLES = {
    "primary": "bold",
    "killed": "red",
    "fenced": "red",
    "locked out": "red",
    "writers held": "red",
    "catching-up": "yellow",
    "disconnected": "yellow",
    "streaming": "green",
}

PHASES = {
    "start": "an app writes with stock sqlite3; a primary starts on its host, origin",
    "bootstrap": "edge-1 and edge-2 copy the archive, then join the stream",
    "write": "the app goes on writing; a reader on each replica checks what it sees",
    "kill": f"SIGKILL for {VICTIM}, a follower; the app and both readers go on",
    "return": f"{VICTIM} starts again and catches up",
    "failover": "origin is lost: SIGKILL for the primary; the app tries the other hosts",
    "taken over": "a follower has taken over: the app writes there, the other one follows it",
    "rejoin": "origin is back, its primary started as before: now it is a follower",
    "level": "the app stops; both followers reach its last commit",
    "compare": "all processes stop; their files and a restore are compared",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; None where a column has no meaning. `role` is what the node itself says; a node that is
    dead has none."""

    node: str
    role: str = ""
    state: str = ""
    position: str = ""
    behind: int | None = None
    lag_ms: float | None = None
    rows: int | None = None
    wal_bytes: int | None = None


@dataclass(slots=True)
class Facts:
    """What the demo found; `--json` prints it."""

    passed: bool = False
    failure: str | None = None
    seconds: float = 0.0
    commits: int = 0
    longest_commit_ms: float = 0.0
    position: str = ""
    longest_lag_ms: float = 0.0
    disconnects: int = 0
    killed: str = VICTIM
    down_s: float = 0.0
    behind_txids: int = 0
    level_again_s: float = 0.0
    new_primary: str = ""
    term: int = 0
    first_write_s: float = 0.0
    lost_commits: int = 0
    kept_in: list[str] = field(default_factory=list)
    rejoined_s: float = 0.0
    checks: int = 0
    longest_read_ms: float = 0.0
    broken: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    bytes: int = 0
    folder: str | None = None


def screen(phases: Sequence[str], passed: bool, rows: Sequence[Row], width: int) -> RenderableType:
    """The phases in words, the last of them going on until all is passed, and the table below them."""
    done = len(phases) if passed else len(phases) - 1
    lines = [Text(f"✓ {PHASES[phase]}", style="green") for phase in phases[:done]]
    lines += [Text(f"▸ {PHASES[phase]}", style="bold") for phase in phases[done:]]
    return Group(*lines, table(rows, wide=width >= WIDE))


def table(rows: Sequence[Row], *, wide: bool) -> Table:
    """Positions go without leading zeros and with the beginning of the checksum where the screen is narrow."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1 if wide else 0, 0, 0), pad_edge=False)
    columns = (("node", 6), ("role", 8), ("state", 13), ("position", 33 if wide else 15))
    for name, least in columns:
        shown.add_column(name, min_width=least, no_wrap=True)
    for name in ("behind", "lag ms", "rows", "WAL MB"):
        shown.add_column(name, min_width=6, justify="right", no_wrap=True)
    for row in rows:
        style = STYLES.get(row.state, "")
        numbers = _number(row.behind), _number(row.lag_ms, 1), _number(row.rows)
        wal_mb = _number(None if row.wal_bytes is None else row.wal_bytes / 1e6, 1)
        position = row.position if wide else _short(row.position)
        role = Text(row.role, STYLES.get(row.role, ""))
        shown.add_row(row.node, role, Text(row.state, style), position, *numbers, wal_mb)
    return shown


def _short(position: str) -> str:
    txid, _, checksum = position.partition("/")
    return f"{txid.lstrip('0')}/{checksum[:8]}" if checksum else position


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits if value < 1000 else 0}f}"


def plain_line(elapsed_s: float, rows: Sequence[Row]) -> str:
    """The table as one line, where there is no terminal."""
    texts = []
    for row in rows:
        count = f", {row.behind:,} behind" if row.behind is not None else ""
        count = f", {row.rows:,} rows" if row.node == "app" and row.rows is not None else count
        role = f"{row.role}, " if row.role in ("primary", "fenced") else ""
        texts.append(f"{row.node} {role}{row.state}{count}")
    return f"{elapsed_s:5.1f} s    {'; '.join(texts)}"


def verdict(facts: Facts, log_lines: Sequence[str] = ()) -> list[str]:
    """What was proven, or what failed."""
    if not facts.passed:
        return [f"FAILED after {facts.seconds:.1f} s: {facts.failure}", *(f"  | {line}" for line in log_lines)]
    return [
        f"PASSED in {facts.seconds:.1f} s",
        f"  {facts.commits:,} commits of an unchanged app, the longest {facts.longest_commit_ms:.1f} ms",
        f"  longest lag seen of a streaming replica: {facts.longest_lag_ms:.1f} ms"
        + (f"; streams seen broken: {facts.disconnects}" if facts.disconnects else ""),
        f"  {facts.killed}: killed, {facts.down_s:.1f} s down, {facts.behind_txids:,} commits behind, "
        f"level {facts.level_again_s:.1f} s after its start",
        *_failover_words(facts),
        f"  {facts.checks:,} checks by readers that never reconnected: none blocked, torn or older",
        f"  equal byte for byte, {facts.bytes / 1e6:.2f} MB, integrity ok: {', '.join(facts.equal)}",
    ]


def _failover_words(facts: Facts) -> list[str]:
    if not facts.new_primary:
        return []
    lost = f"lost with that host: {facts.lost_commits:,} commit{'' if facts.lost_commits == 1 else 's'}"
    if facts.lost_commits:
        lost += f", kept aside in {', '.join(facts.kept_in)}"
    return [
        f"  origin, the primary: killed; {facts.new_primary} took over in term {facts.term}, "
        f"the app's first write there after {facts.first_write_s:.1f} s",
        f"  {lost}",
        f"  origin: started as before, it follows {facts.new_primary}, level {facts.rejoined_s:.1f} s after its start",
    ]


def app_row(said: dict[str, Any], running: bool) -> Row:
    """The app, and the host that it writes to."""
    where = Path(said["database"]).parent.name if said.get("database") else ""
    if not running:
        state = "stopped" if said else "waiting"
    elif where:
        state = f"on {where}"
    else:
        state = "locked out" if said else "starting"
    return Row("app", "writer", state, rows=said.get("rows"))


def primary_row(name: str, facts: dict[str, Any]) -> Row:
    """What a node answered that is the primary, or was it and may not act now."""
    return Row(name, facts["role"], "serving" if facts["role"] == "primary" else "writers held", facts["position"])


def gone_row(before: Row, *, killed: bool) -> Row:
    """A node that was last seen as the primary, or never, and has no process now."""
    state = "killed" if killed else "stopped" if before.role else before.state
    return replace(before, role="" if killed else before.role, state=state, lag_ms=None)


def follower_row(
    name: str,
    status: Status | None,
    pid: int | None,
    behind: int,
    now_ns: int,
    *,
    role: str = "follower",
    killed: bool = False,
) -> Row:
    """A follower, `behind` by so many transactions; `pid` is None when it has no process: it was `killed`, or stopped
    by itself."""
    if status is None:
        return Row(name, role, "starting" if pid else "waiting")
    if pid is None:
        state = "killed" if killed else "stopped"
    else:
        state = str(status.state) if status.pid == pid else "starting"
    lag_ms: float | None = None
    if state != "stopped":
        lag_ms = status.lag_ms(now_ns) if status.pid == pid else max(0, now_ns - status.level_ns) / 1e6
    return Row(name, role, state, str(status.position), behind, lag_ms)
