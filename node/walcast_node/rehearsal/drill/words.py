"""The report as text: a verdict, a row a step, what was checked. Facts in, text out."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from walcast_node.commands.printing import plain
from walcast_node.rehearsal.drill.facts import Promise, Result, Step

ENDED = "drill.ended"


def duration(value_ms: float | None) -> str:
    """37 ms, 2.66 s; nothing for what has no meaning."""
    if value_ms is None:
        return ""
    return f"{value_ms:.0f} ms" if value_ms < 1000 else f"{value_ms / 1000:.2f} s"


def verdict(result: Result) -> str:
    """One line."""
    kept = sum(promise.kept is True for promise in result.promises)
    if result.passed:
        return f"PASSED in {result.seconds:.1f} s: {kept} promises checked, all kept"
    broken = len(result.broken)
    why = f": {result.failure.split(' | ')[0]}" if result.failure else ""
    return f"FAILED after {result.seconds:.1f} s: {broken} of {len(result.promises)} promises broken{why}"


def reattached(step: Step) -> str:
    """Who follows the new primary, and how soon."""
    return ", ".join(f"{one.node} {duration(one.after_ms)}" for one in step.attached)


def lost(step: Step) -> str:
    """How many rows, and how many of them are kept."""
    if not step.lost:
        return "0"
    return f"{step.lost:,}, {'all' if step.kept_rows == step.lost else f'{step.kept_rows:,}'} kept"


def report(result: Result) -> RenderableType:
    """All of it."""
    return Group(*_parts(result))


def _parts(result: Result) -> Iterator[RenderableType]:
    yield plain(verdict(result), style="bold green" if result.passed else "bold red")
    if result.failure:
        for line in result.failure.split(" | ")[1:]:
            yield plain(f"  | {line}")
    if result.steps:
        yield _table(result)
    for step in result.steps:
        for where in step.kept_in:
            yield Text(f"  {step.title.split(' of ')[0]}: kept in {where}", overflow="fold")
        for note in step.notes:
            yield plain(f"  {step.title}: {note}")
    for promise in result.promises:
        if not promise.kept and promise.key != ENDED:  # the first line says why it did not
            yield plain(_broken(promise, result), style="red")
    if result.committed:
        some = f"{result.committed:,} rows committed, {result.acknowledged:,} acknowledged by a barrier"
        yield Text(f"  {some}, {result.lost:,} lost with the node that alone had them")
    if result.reader_checks:
        yield Text(f"  {result.reader_checks:,} checks by readers that never reconnected")
    for text in result.not_done:
        yield plain(f"  not done: {text}")


def _broken(promise: Promise, result: Result) -> str:
    step = next((f"{step.title}: " for step in result.steps if step.key == promise.step), "")
    return f"  BROKEN {step}{promise.words}: {promise.evidence}"


def _table(result: Result) -> Table:
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("step")
    shown.add_column("", no_wrap=True)
    for name in ("detect", "promote", "first write", "pause", "lost"):
        shown.add_column(name, justify="right")
    shown.add_column("re-attached")
    for step in result.steps:
        numbers = (step.detect_ms, step.promote_ms, step.first_write_ms, step.pause_ms)
        way = f"{step.old} → {step.new}" if step.new else step.old
        cells = (step.title.split(" of ")[0], way, *map(duration, numbers), lost(step), reattached(step))
        shown.add_row(*map(plain, cells))
    return shown
