"""Pictures that people send: what they are is said by their first bytes, not by their name or by who sent them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

MOST_BYTES = 2 << 20
ACCEPT = "image/png, image/jpeg, image/webp, image/gif"


class NotAPicture(ValueError):
    """What to tell whoever sent it."""


@dataclass(frozen=True)
class Picture:
    """`type` is its media type."""

    type: str
    data: bytes

    @cached_property
    def digest(self) -> str:
        """Its name: the same bytes are kept once, and may be cached for ever."""
        return hashlib.sha256(self.data).hexdigest()[:32]


def recognise(data: bytes) -> Picture | None:
    """None for an empty field. NotAPicture for what is too large or something else; an SVG is, it may hold scripts."""
    if not data:
        return None
    if len(data) > MOST_BYTES:
        raise NotAPicture(f"The picture is larger than {MOST_BYTES >> 20} MiB.")
    kind = _type(data)
    if kind is None:
        raise NotAPicture("This is no PNG, JPEG, WebP or GIF.")
    return Picture(kind, data)


def _type(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return None
