"""Every step back that a reader saw, and what explains it.

The documented case: the node had transactions of its own, and they are in a folder of its `discarded/` from before the
step. Then the pages there have the rows that are gone, byte for byte. Anything else is a fault; and so is a step in
which a row is gone that had been confirmed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walcast import ltx
from walcast.discarded import list_discarded


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder of `discarded/`: what kind it is, why and when it was kept, and all its pages."""

    name: str
    kind: str
    why: str
    kept_at_s: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """A step back of a reader of `node`: when, the rows that were gone (app, n), and the folders that have them."""

    node: str
    at_s: float
    gone: tuple[tuple[str, int], ...]
    folders: tuple[Kept, ...]
    unexplained: tuple[tuple[str, int], ...]
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def kind(self) -> str:
        """In words, for a table."""
        if self.unexplained:
            return "unexplained"
        states = f"{self.before['state']} to {self.after['state']}"
        return f"{' and '.join(sorted({f'{kept.kind}: {kept.why}' for kept in self.folders}))} ({states})"


def kept_by(database: Path) -> list[Kept]:
    """What a node has kept, in all its life."""
    return [
        Kept(
            folder.path.name,
            folder.kind,
            folder.why,
            folder.kept_at_ms / 1000,
            b"".join(page.data for file in sorted(folder.path.glob("*.ltx")) for page in _pages(file)),
        )
        for folder in list_discarded(database)
    ]


def _pages(file: Path) -> list[ltx.Page]:
    return ltx.decode_file(file.read_bytes())[1]


def explain(node: str, line: str, kept: list[Kept]) -> Step:
    """A line of a reader of that node, and the folders that were there by then and have the rows that are gone."""
    told = json.loads(line)
    before, after = told["before"], told["after"]
    folders: dict[str, Kept] = {}
    unexplained = []
    for app, (n, body) in told["gone"].items():
        having = [k for k in kept if k.kept_at_s <= after["wall_s"] and bytes.fromhex(body) in k.data]
        folders.update({k.name: k for k in having})
        if not having:
            unexplained.append((app, n))
    gone = tuple((app, n) for app, (n, _) in told["gone"].items())
    return Step(node, after["at_s"], gone, tuple(folders.values()), tuple(unexplained), before, after)


def check_steps(steps: list[Step], confirmed_s: dict[tuple[str, int], float]) -> None:
    """Every one is explained, and takes no row back that was confirmed by then."""
    wrong = [step for step in steps if step.unexplained]
    words = [f"{s.node} {s.at_s:.3f} {s.unexplained} {s.before} {s.after}" for s in wrong]
    assert not wrong, f"{len(wrong)} of {len(steps)} steps back are not explained: {words[:5]}"
    for step in steps:
        taken = [row for row in step.gone if confirmed_s.get(row, step.at_s) < step.at_s]
        assert not taken, f"a reader of {step.node} saw confirmed rows go at {step.at_s:.3f}: {taken}: {step.folders}"
