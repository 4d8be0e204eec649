"""The timeline as SVG: a lane a node, coloured by its role; the app's commits below; where nobody could write.

Colours are classes, so that the page around it has one set for light and one for dark.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from walcast_node.rehearsal.drill.facts import Mark, Result, Span, Step

WIDTH = 1160
LEFT = 74
RIGHT = 18
HEAD = 58
LANE = 30
LANE_GAP = 12
CURVE = 96
CURVE_GAP = 34
AXIS = 30
LEAST_PX = 0.75
DOT_GAP_PX = 9

ROLES = {
    "primary": "primary",
    "follower": "follower",
    "catching-up": "follower, not level",
    "fenced": "fenced: writers held",
    "starting": "starting",
    "dead": "killed",
    "stopped": "stopped (SIGSTOP)",
}
FAULTS = {"kill -9", "SIGSTOP", "cut off"}


def timeline(result: Result) -> str:
    """One <svg>."""
    return "\n".join(_Picture(result).lines())


class _Picture:
    def __init__(self, result: Result) -> None:
        self.result = result
        self.end_s = max([result.seconds, 1.0, *(span.end_s for span in result.spans)])
        self.lanes = {node: HEAD + at * (LANE + LANE_GAP) for at, node in enumerate(result.nodes)}
        self.bottom = HEAD + len(result.nodes) * (LANE + LANE_GAP) - LANE_GAP
        self.curve_top = self.bottom + CURVE_GAP
        self.curve_bottom = self.curve_top + CURVE
        self.height = self.curve_bottom + AXIS

    def x(self, at_s: float) -> float:
        """Pixels."""
        share = min(max(at_s, 0.0), self.end_s) / self.end_s
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def lines(self) -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            'aria-label="Roles of the nodes and commits of the app over time">'
        )
        yield _PATTERNS
        for step in self.result.steps:
            yield from self._step(step)
        yield from self._axis()
        yield from self._curve()
        for node, top in self.lanes.items():
            yield f'<text class="node" x="{LEFT - 14}" y="{top + LANE / 2 + 5}" text-anchor="end">{escape(node)}</text>'
            yield (f'<rect class="lane" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{LANE}" rx="4"/>')
        for span in self.result.spans:
            yield from self._span(span)
        for cut in self.result.cuts:
            yield from self._cut(cut.node, cut.start_s, cut.end_s)
        for begin_s, end_s in self.result.rests:
            left, width = self.x(begin_s), self.x(end_s) - self.x(begin_s)
            yield f'<rect class="rest" x="{left}" y="{self.curve_top}" width="{width:.2f}" height="{CURVE}"/>'
        for begin_s, end_s in self.result.pauses:
            yield from self._pause(begin_s, end_s)
        yield from self._marks()
        yield "</svg>"

    def _step(self, step: Step) -> Iterator[str]:
        left, right = self.x(step.began_s), self.x(step.ended_s if step.ended_s is not None else self.end_s)
        height = self.curve_bottom - 14
        yield f'<rect class="step" x="{left}" y="14" width="{right - left - 3:.2f}" height="{height}" rx="6"/>'
        yield f'<text class="title" x="{left + 10}" y="34">{escape(step.title.split(" of ")[0])}</text>'

    def _axis(self) -> Iterator[str]:
        every_s = next((s for s in (1, 2, 5, 10, 30, 60, 120) if self.end_s / s <= 20), 300)
        for second in range(0, int(self.end_s) + 1, every_s):
            x = self.x(second)
            yield f'<line class="grid" x1="{x}" x2="{x}" y1="{HEAD - 6}" y2="{self.curve_bottom}"/>'
            yield f'<text class="tick" x="{x}" y="{self.curve_bottom + 19}" text-anchor="middle">{second} s</text>'

    def _span(self, span: Span) -> Iterator[str]:
        if span.node not in self.lanes:
            return
        left = self.x(span.start_s)
        width = max(LEAST_PX, self.x(span.end_s) - left)
        role = span.role if span.role in ROLES else "starting"
        top = self.lanes[span.node]
        about = f"{span.node}: {ROLES[role]}, {span.start_s:.2f} to {span.end_s:.2f} s"
        yield (
            f'<rect class="role {role}" x="{left}" y="{top}" width="{width:.2f}" height="{LANE}" rx="3">'
            f"<title>{escape(about)}</title></rect>"
        )

    def _cut(self, node: str, start_s: float, end_s: float) -> Iterator[str]:
        if node not in self.lanes:
            return
        left, top = self.x(start_s), self.lanes[node]
        width = max(LEAST_PX, self.x(end_s) - left)
        about = f"{node}: cut off, {start_s:.2f} to {end_s:.2f} s"
        yield (
            f'<rect class="cut" x="{left}" y="{top - 4}" width="{width:.2f}" height="{LANE + 8}" rx="5">'
            f"<title>{escape(about)}</title></rect>"
        )

    def _curve(self) -> Iterator[str]:
        """Commits a second, as steps."""
        result = self.result
        most = max([1, *result.rates])
        points = [f"M {LEFT} {self.curve_bottom}"]
        for at, count in enumerate(result.rates):
            y = round(self.curve_bottom - count / most * CURVE, 2)
            points.append(f"L {self.x(at * result.bin_s)} {y} L {self.x((at + 1) * result.bin_s)} {y}")
        points.append(f"L {self.x(len(result.rates) * result.bin_s)} {self.curve_bottom} Z")
        yield f'<path class="curve" d="{" ".join(points)}"/>'
        yield f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.curve_bottom}" y2="{self.curve_bottom}"/>'
        per_s = f"{most / result.bin_s:,.0f}/s"
        yield f'<text class="tick" x="{LEFT - 8}" y="{self.curve_top + 9}" text-anchor="end">{per_s}</text>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{self.curve_bottom}" text-anchor="end">0</text>'
        middle = (self.curve_top + self.curve_bottom) / 2 + 4
        yield f'<text class="tick" x="{LEFT - 8}" y="{middle}" text-anchor="end">commits</text>'

    def _pause(self, begin_s: float, end_s: float) -> Iterator[str]:
        left, right = self.x(begin_s), self.x(end_s)
        top = self.curve_top - 6
        ms = (end_s - begin_s) * 1000
        words = f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"
        yield (
            f'<rect class="pause" x="{left}" y="{top}" width="{max(1.5, right - left):.2f}" '
            f'height="{self.curve_bottom - top}"><title>nobody could write for {words}</title></rect>'
        )
        middle = (left + right) / 2
        yield f'<text class="pause-words" x="{middle:.2f}" y="{top - 6}" text-anchor="middle">{words}</text>'

    def _marks(self) -> Iterator[str]:
        """What was done to nodes as flags with words; what came of it as dots that tell when pointed at."""
        taken: dict[str, float] = {}
        for mark in self.result.marks:
            if mark.node not in self.lanes:
                continue
            x, top = self.x(mark.at_s), self.lanes[mark.node]
            about = f"<title>{escape(f'{mark.at_s:.2f} s, {mark.node}: {mark.text}')}</title>"
            if is_fault(mark):
                yield f'<line class="fault" x1="{x}" x2="{x}" y1="{top - 7}" y2="{top + LANE + 3}">{about}</line>'
                yield f'<text class="fault-words" x="{x + 5}" y="{top + LANE / 2 + 4}">{escape(mark.text)}</text>'
                continue
            x = max(x, taken.get(mark.node, 0.0) + DOT_GAP_PX)
            taken[mark.node] = x
            yield f'<circle class="dot" cx="{x:.2f}" cy="{top + LANE - 5}" r="2.6">{about}</circle>'


def is_fault(mark: Mark) -> bool:
    """Was it done to the node, not by it?"""
    return mark.text in FAULTS or mark.text.startswith("switchover")


_PATTERNS = """<defs>
<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<line x1="0" y1="0" x2="0" y2="7" class="hatch"/></pattern>
<pattern id="wide" width="10" height="10" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">
<line x1="0" y1="0" x2="0" y2="10" class="wide"/></pattern>
</defs>"""
