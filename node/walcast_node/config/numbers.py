"""Numbers as flags take them: plain ones, sizes and durations, within bounds, each refused with an example."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from walcast_node.config.durations import parse_duration

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_size(text: str) -> int | None:
    """Bytes: 256MB is 256_000_000, 256MiB is 268_435_456, as Litestream has it. None when it is no size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))


class Whole(click.IntRange):
    """A whole number."""

    name = "integer"


class Number(click.FloatRange):
    """A number, and a finite one: no comparison holds for NaN, and nothing waits for an infinite time."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Seconds(Number):
    """Seconds as a number, or a duration as a configuration file has it."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = parse_duration(value) if isinstance(value, str) else value
        if seconds is None:
            try:
                seconds = float(value)
            except ValueError:
                self.fail(f"{value!r} is neither a number of seconds nor a duration, as in 90s or 1h30m", param, ctx)
        return super().convert(seconds, param, ctx)


class Size(Whole):
    """Bytes as a number, or a size as a configuration file has it."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        size = parse_size(value) if isinstance(value, str) else value
        if size is None:
            self.fail(f"{value!r} is not a size, as in 256MiB or 268435456", param, ctx)
        return super().convert(size, param, ctx)
