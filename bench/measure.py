"""What was measured, against which floor. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

Samples = Sequence[float]


def quantile(values: Samples, share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * len(ordered) * 1000) // 1000) - 1))]


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table: `samples` has one number a round; the median counts.

    `at_most` and `at_least` are the floor; neither is given for a number that only informs. `note` says what the
    number means, where its name does not.
    """

    what: str
    unit: str
    samples: list[float] = field(default_factory=list)
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """What counts."""
        return statistics.median(self.samples)

    @property
    def passed(self) -> bool | None:
        """None where there is no floor."""
        if self.at_most is not None:
            return self.median <= self.at_most
        if self.at_least is not None:
            return self.median >= self.at_least
        return None

    @property
    def floor(self) -> str:
        """As it is printed."""
        if self.at_most is not None:
            return f"≤ {show(self.at_most)} {self.unit}".strip()
        if self.at_least is not None:
            return f"≥ {show(self.at_least)} {self.unit}".strip()
        return ""

    @property
    def verdict(self) -> str:
        """As it is printed."""
        return {True: "pass", False: "**missed**", None: ""}[self.passed]

    def encode(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self) | {"median": self.median, "passed": self.passed}

    @classmethod
    def decode(cls, facts: dict[str, Any]) -> Self:
        """The other way."""
        return cls(**{name: value for name, value in facts.items() if name not in ("median", "passed")})


def show(value: float) -> str:
    """Three digits that matter."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
