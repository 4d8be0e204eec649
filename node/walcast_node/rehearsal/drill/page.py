"""The report as one HTML file: no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from walcast_node.rehearsal.drill.facts import Promise, Result, Step
from walcast_node.rehearsal.drill.picture import ROLES, timeline
from walcast_node.rehearsal.drill.words import ENDED, duration, lost, reattached

STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #ffffff; --text: #17202a; --soft: #5d6b7a; --line: #dfe4ea;
  --good: #157f4b; --good-bg: #e2f5ea; --bad: #c0271e; --bad-bg: #fdeae8; --primary: #1769c2; --follower: #b9d3ee;
  --catching: #e2ecf6; --fenced: #f0a81e; --starting: #e4e7eb; --dead: #4a5058; --stopped: #8d62c9; --step: #eef1f5;
  --curve: #1769c2; --curve-bg: #1769c233; --pause: #d9362b; --pause-bg: #d9362b26; --on: #ffffff; --lane: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --bg: #11151a; --card: #1a2027; --text: #e6ebf0; --soft: #93a1b0;
  --line: #2c353f; --good: #4fd18b; --good-bg: #14321f; --bad: #ff7a70; --bad-bg: #3d1a18; --primary: #4c9df0;
  --follower: #2d4d70; --catching: #253545; --fenced: #d9951a; --starting: #333b45; --dead: #7d858f; --stopped: #8a68bd;
  --step: #20272f; --curve: #4c9df0; --curve-bg: #4c9df033; --pause: #ff6b60; --pause-bg: #ff6b6033; --on: #ffffff;
  --lane: #262e37; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 24px 56px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 6px 16px; margin-bottom: 4px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 0 0 14px; }
.badge { border-radius: 999px; padding: 2px 14px; font-weight: 600; font-size: 15px; }
.badge.good { color: var(--good); background: var(--good-bg); }
.badge.bad { color: var(--bad); background: var(--bad-bg); }
p.about { color: var(--soft); margin: 0 0 20px; overflow-wrap: anywhere; }
p.failure { color: var(--bad); background: var(--bad-bg); border-radius: 8px; padding: 10px 14px;
  white-space: pre-wrap; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-bottom: 16px; }
.numbers div, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.numbers div { padding: 12px 16px; }
.numbers b { display: block; font-size: 24px; font-weight: 650; line-height: 1.25; }
.numbers span { color: var(--soft); font-size: 13px; }
section { padding: 20px; margin-bottom: 16px; } .scroll { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 860px; height: auto; }
table { border-collapse: collapse; width: 100%; min-width: 860px; }
th { text-align: left; font-size: 13px; color: var(--soft);
  font-weight: 500; } th, td { padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } .n { text-align: right; white-space: nowrap; } td small { color: var(--soft);
  display: block; overflow-wrap: anywhere; } .nodes { white-space: nowrap; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 12px 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: 13px; } .key li { display: flex; align-items: center; gap: 6px; }
.key svg { width: 22px; min-width: 22px; height: 14px; }
h3 { font-size: 14px; margin: 18px 0 4px; } h3:first-of-type { margin-top: 0; }
ul.checks { list-style: none; margin: 0; padding: 0; } ul.checks li { display: grid; gap: 0 14px; padding: 6px 0;
  grid-template-columns: 20px minmax(220px, 5fr) 7fr; border-bottom: 1px solid var(--line); }
ul.checks li:last-child { border-bottom: 0; } ul.checks i { font-style: normal; font-weight: 700; color: var(--good); }
ul.checks li.bad i, ul.checks li.bad { color: var(--bad); }
ul.checks span { color: var(--soft); overflow-wrap: anywhere; }
ul.checks li.bad span { color: var(--bad); }
footer { color: var(--soft); font-size: 13px; } footer p { margin: 4px 0; }
@media (max-width: 640px) { main { padding: 20px 12px; } section { padding: 14px; }
  ul.checks li { grid-template-columns: 20px 1fr; } ul.checks span { grid-column: 2; } }
.step { fill: var(--step); } .lane { fill: var(--lane); }
.title { font-size: 13px; font-weight: 600; fill: var(--text); }
.node { font-size: 15px; font-weight: 650; fill: var(--text); } .tick { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; } .base { stroke: var(--soft); stroke-width: 1; }
.curve { fill: var(--curve-bg); stroke: var(--curve); stroke-width: 1.2; }
.pause { fill: var(--pause-bg); stroke: var(--pause); stroke-width: 0.8; }
.pause-words { font-size: 12px; font-weight: 600; fill: var(--pause); }
.role.primary { fill: var(--primary); } .role.follower { fill: var(--follower); }
.role.catching-up { fill: var(--catching); stroke: var(--follower); } .role.fenced { fill: var(--fenced); }
.role.starting { fill: var(--starting); } .role.dead { fill: var(--dead); } .role.stopped { fill: var(--stopped); }
.cut { fill: url(#wide); stroke: var(--pause); stroke-width: 1.2; stroke-dasharray: 4 3; }
.rest { fill: url(#hatch); opacity: 0.35; }
.wide { stroke: var(--pause); stroke-width: 1.4; opacity: 0.5; } .hatch { stroke: var(--soft); }
.fault { stroke: var(--pause); stroke-width: 2.4; } .fault-words { font-size: 12px; font-weight: 650; fill: var(--on);
  paint-order: stroke; stroke: #00000066; stroke-width: 2.5px; stroke-linejoin: round; }
.dot { fill: var(--card); stroke: var(--text); stroke-width: 1.2; }
svg text { font-family: inherit; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def page(result: Result) -> str:
    """The whole file."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Result) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f"<title>walcast drill, {escape(result.started)}</title>"
    yield f"<style>{STYLE}</style></head>\n<body><main>"
    yield from _head(result)
    if result.spans:
        yield '<section><h2>What happened</h2><div class="scroll">'
        yield timeline(result)
        yield f"</div>{_key(result)}</section>"
    if result.steps:
        yield from _steps(result)
    yield from _checks(result)
    yield from _foot(result)
    yield "</main></body></html>"


def _head(result: Result) -> Iterator[str]:
    word, kind = ("passed", "good") if result.passed else ("failed", "bad")
    yield f'<header><h1>walcast drill</h1><span class="badge {kind}">{word}</span></header>'
    where = "a replica set made for it" if result.kind == "local" else "a running set"
    load = f", {result.rate:,.0f} writes a second" if result.rate else ""
    lease = f", lease {result.lease_s:g} s" if result.lease_s else ""
    about = f"{result.started}, {where}{lease}{load}; {result.seconds:.1f} s; walcast {result.version}"
    yield f'<p class="about">{escape(about)}<br/>archive {escape(result.archive)}</p>'
    if result.failure:
        yield f'<p class="failure">{escape(result.failure.replace(" | ", chr(10)))}</p>'
    titles = {step.key: f"{step.title}: " for step in result.steps}
    broken = [one for one in result.promises if one.kept is False and one.key != ENDED]
    for one in broken:
        text = f"{titles.get(one.step, '')}{one.words}: broken; {one.evidence}"
        yield f'<p class="failure">{escape(text)}</p>'
    kept = sum(promise.kept is True for promise in result.promises)
    switch = next((step.pause_ms for step in result.steps if step.key == "switchover"), None)
    worst = max((step.first_write_ms for step in result.steps if step.first_write_ms is not None), default=None)
    numbers = [(f"{kept} of {len(result.promises)}", "promises kept")]
    if result.committed:
        gone = any(one.key.endswith(".acknowledged") for one in broken)
        survived = "none of them lost" if not gone else "SOME ARE LOST"
        numbers.append((f"{result.acknowledged:,}", f"rows acknowledged, {survived}"))
        kept_rows = sum(step.kept_rows for step in result.steps)
        numbers.append((f"{result.lost:,}", f"rows committed on one node only, {kept_rows:,} kept aside"))
    if switch is not None:
        numbers.append((duration(switch), "writers paused at the switchover"))
    if worst is not None and len(result.steps) > 1:
        numbers.append((duration(worst), "the slowest way to the next write"))
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(text)}</span></div>" for value, text in numbers)
    yield f'<div class="numbers">{cards}</div>'


def _key(result: Result) -> str:
    used = {span.role for span in result.spans}
    swatch = '<svg viewBox="0 0 22 14"><rect class="{}" width="22" height="14" rx="3"/></svg>'
    items = [(f"role {role}", words) for role, words in ROLES.items() if role in used]
    items += [("cut", "cut off from everybody")] if result.cuts else []
    items += [("pause", "nobody could write")] if result.pauses else []
    items += [("rest", "the app rests: all copies are compared")] if result.rests else []
    shown = "".join(f"<li>{swatch.format(kind)}{escape(words)}</li>" for kind, words in items)
    return f'<ul class="key">{shown}</ul>'


def _steps(result: Result) -> Iterator[str]:
    yield '<section><h2>The steps</h2><div class="scroll"><table><thead><tr><th>step</th><th>primary</th>'
    for name in ("detected", "promoted", "first write", "pause", "lost"):
        yield f'<th class="n">{name}</th>'
    yield "<th>re-attached</th></tr></thead><tbody>"
    for step in result.steps:
        yield _step(step)
    yield "</tbody></table></div></section>"


def _step(step: Step) -> str:
    cells = [
        _cell(step.title, [step.what, *step.notes]),
        f'<td class="nodes">{escape(step.old)} → {escape(step.new or "?")}</td>',
    ]
    times = (step.detect_ms, step.promote_ms, step.first_write_ms, step.pause_ms)
    cells += [f'<td class="n">{escape(duration(value)) or "-"}</td>' for value in times]
    cells.append(f'<td class="n">{escape(lost(step))}</td>')
    kept = [f"kept in {where}" for where in step.kept_in]
    cells.append(_cell(reattached(step), kept))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, more: list[str]) -> str:
    return f"<td>{escape(text)}{''.join(f'<small>{escape(line)}</small>' for line in more)}</td>"


def _checks(result: Result) -> Iterator[str]:
    yield "<section><h2>What was promised</h2>"
    titles = {step.key: step.title for step in result.steps}
    for key in dict.fromkeys(promise.step for promise in result.promises):
        yield f'<h3>{escape(titles.get(key, "from beginning to end"))}</h3><ul class="checks">'
        yield from (_check(promise) for promise in result.promises if promise.step == key)
        yield "</ul>"
    yield "</section>"


def _check(promise: Promise) -> str:
    kind, sign = ("good", "✓") if promise.kept else ("bad", "✗" if promise.kept is False else "?")
    words, evidence = escape(promise.words), escape(promise.evidence)
    return f'<li class="{kind}"><i>{sign}</i><b>{words}</b><span>{evidence}</span></li>'


def _foot(result: Result) -> Iterator[str]:
    yield "<footer>"
    for text in result.not_done:
        yield f"<p>Not done: {escape(text)}</p>"
    for text in NOTES if result.kind == "local" else ():
        yield f"<p>{escape(text)}</p>"
    yield "</footer>"


NOTES = (
    "Times are from the fault: detected, when a follower first said in the archive that the lease is not renewed; "
    "promoted, when the new primary began; first write, when its first commit by the app was done. The pause is from "
    "the last commit before to the first after.",
    "While walcast is dead or stopped on a node, nothing there can hold its writers; the drill takes the app beside it "
    "for gone with it. A folder as the archive of a node that is cut off fails at once; one in S3 is silent.",
)
