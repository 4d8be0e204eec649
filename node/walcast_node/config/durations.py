"""Durations as Go writes them, and with days: 90s, 1h30m, 7d."""

from __future__ import annotations

import re
from typing import Any

import click

_PART = r"(\d+(?:\.\d+)?)(ns|us|µs|μs|ms|s|m|h|d)"
_DURATION = re.compile(rf"(?:{_PART})+")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float | None:
    """In seconds; None when it is none. A bare 0 is one."""
    if text == "0":
        return 0.0
    parts = re.findall(_PART, text) if _DURATION.fullmatch(text) else []
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts)) if parts else None


class Duration(click.ParamType[float]):
    """A flag's value, in seconds; 0 is allowed."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is not a duration, as in 90s or 1h30m", param, ctx)
        return seconds
