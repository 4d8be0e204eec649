"""TXIDs, checksums and positions: the vocabulary of LTX (superfly/ltx, `ltx.go`).

A TXID counts commits from 1. A checksum is 64 bits with the top bit set, so that none is ever zero; zero means "not
known". A position is a TXID and the database checksum after it: two copies at one position are equal byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

CHECKSUM_FLAG = 1 << 63

_POSITION = re.compile(r"([0-9a-f]{16})/([0-9a-f]{16})")


def format_txid(txid: int) -> str:
    """16 hex digits, as LTX names its files."""
    return f"{txid:016x}"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A TXID and the database checksum after it; prints as `TXID/checksum`, 16 hex digits each."""

    txid: int = 0
    checksum: int = 0

    def __str__(self) -> str:
        return f"{self.txid:016x}/{self.checksum:016x}"

    def __bool__(self) -> bool:
        return self.txid != 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError for anything `str(position)` does not print."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError(f"not a position: {text!r} (16 hex digits, a slash, 16 hex digits)")
        return cls(int(match[1], 16), int(match[2], 16))
