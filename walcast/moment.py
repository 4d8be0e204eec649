"""Moments: milliseconds since 1970 in UTC, as LTX headers hold them, and RFC 3339 as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
TIMESTAMP_MAX_MS = 253_402_300_799_999  # the end of the year 9999, the last that times can be formatted of

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?")


def parse_moment(text: str) -> int:
    """RFC 3339; without a zone it is UTC, without a time of day its midnight. ValueError for anything else.

    What is finer than a millisecond is cut off, as it is in an LTX header.
    """
    upper = text.strip().upper()
    if _RFC3339.fullmatch(upper) is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    moment = datetime.fromisoformat(upper)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MILLISECOND  # in integers: a float of seconds misses some milliseconds by one


def format_moment(timestamp_ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds where there are any; a number for a time that no calendar has."""
    try:
        moment = _EPOCH + timedelta(milliseconds=timestamp_ms)
    except OverflowError:
        return f"{timestamp_ms} ms"
    fraction = f".{timestamp_ms % 1000:03d}" if timestamp_ms % 1000 else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"
