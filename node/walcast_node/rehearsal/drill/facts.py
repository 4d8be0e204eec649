"""What a drill found, as data: the report's renderers and `--json` have nothing else to go by.

All times are seconds since the drill began, durations milliseconds where the name says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Promise:
    """One check: `kept` is None when the drill did not come to it. `evidence` says what was seen, in a line."""

    key: str
    step: str
    words: str
    kept: bool | None
    evidence: str


@dataclass(slots=True)
class Attached:
    """A follower that found the new primary: `after_ms` the fault, or of the old primary after it was back."""

    node: str
    after_ms: float | None
    copied_pages: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Step:
    """One of the steps; None where a number has no meaning there, or was not reached."""

    key: str
    title: str
    what: str
    began_s: float
    ended_s: float | None = None
    old: str = ""
    new: str = ""
    term: int = 0
    fault_s: float | None = None
    healed_s: float | None = None
    detect_ms: float | None = None
    promote_ms: float | None = None
    first_write_ms: float | None = None
    pause_ms: float | None = None
    fenced_ms: float | None = None
    rejoin_ms: float | None = None
    committed: int = 0
    acknowledged: int = 0
    lost: int = 0
    kept_rows: int = 0
    kept_in: list[str] = field(default_factory=list)
    attached: list[Attached] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Span:
    """A node in a role for a while: primary, fenced, follower, catching-up, starting, dead, stopped."""

    node: str
    role: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Mark:
    """Something happened, to `node` or to all ("")."""

    at_s: float
    node: str
    text: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A node that could reach nobody, nor the archive."""

    node: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class Result:
    """The whole of it. `rates` are commits in each `bin_s` from the beginning on; `pauses` where nobody could write,
    `rests` where the app was told not to, so that copies could be compared."""

    kind: str = "local"
    version: str = ""
    started: str = ""
    seconds: float = 0.0
    lease_s: float = 0.0
    rate: float = 0.0
    archive: str = ""
    folder: str | None = None
    nodes: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    bin_s: float = 0.1
    rates: list[int] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    rests: list[tuple[float, float]] = field(default_factory=list)
    attempted: int = 0
    committed: int = 0
    acknowledged: int = 0
    lost: int = 0
    unknown: int = 0
    reader_checks: int = 0
    steps_back: int = 0
    not_done: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Everything was checked, and every promise kept."""
        return self.failure is None and bool(self.promises) and not self.broken

    @property
    def broken(self) -> list[Promise]:
        """What was not kept, or not come to."""
        return [promise for promise in self.promises if not promise.kept]

    def promise(self, key: str, step: str, words: str, kept: bool | None, evidence: str) -> None:
        """Add a check."""
        self.promises.append(Promise(key, step, words, kept, evidence))

    def facts(self) -> dict[str, Any]:
        """For `--json`."""
        kept = sum(promise.kept is True for promise in self.promises)
        head = {"walcast_drill": FORMAT, "passed": self.passed, "promises_kept": kept}
        return head | {"promises_broken": len(self.promises) - kept} | asdict(self)


def between(at_s: float | None, since_s: float | None) -> float | None:
    """Milliseconds from one moment to the other."""
    return None if at_s is None or since_s is None else round((at_s - since_s) * 1000, 1)
