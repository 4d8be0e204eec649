"""results.json and the table in docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from bench.measure import Measure, show

RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

Made by `python -m bench` (`make bench`), or one at a time by the command above each table; `--quick` is shorter and
rougher, and `--profile` adds where the time went, if py-spy is there. Every number comes from real `walcast` processes,
apps in processes of their own that use stock `sqlite3`, and a disk. A ratio is taken within one run, the two sides in
turn, since machines are noisy. The **median** of the rounds counts; the range is the lowest and the highest of them.
The floors are the project's own; rows without one inform.
"""


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "kernel": platform.release().split("-")[0],
    }


def load() -> dict[str, Any]:
    """What is in results.json."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(results: dict[str, Any], order: list[str], about: dict[str, str]) -> None:
    """Write both files."""
    results = {name: results[name] for name in order if name in results}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(HEAD + "".join(_section(name, results[name], about[name]) for name in results))


def _section(name: str, result: dict[str, Any], about: str) -> str:
    facts = result["machine"]
    lines = [
        f"\n## {name}\n",
        f"{about}\n",
        f"`{result['command']}` · {facts['when']} · {facts['cores']} cores, load {facts['load_before']} before · "
        f"Python {facts['python']}, SQLite {facts['sqlite']}, Linux {facts['kernel']}\n",
        "| what | median | range | floor | |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(Measure.decode(measure)) for measure in result["measures"]]
    return "\n".join(lines) + "\n"


def _row(m: Measure) -> str:
    spread = f"{show(min(m.samples))} … {show(max(m.samples))}" if len(m.samples) > 1 else ""
    what = f"{m.what} ({m.note})" if m.note else m.what
    return f"| {what} | {show(m.median)} {m.unit} | {spread} | {m.floor} | {m.verdict} |"


def table(measures: list[Measure]) -> str:
    """For a terminal."""
    rows = [
        (m.what, f"{show(m.median)} {m.unit}", f"{show(min(m.samples))} … {show(max(m.samples))}", m.floor, m.verdict)
        for m in measures
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
