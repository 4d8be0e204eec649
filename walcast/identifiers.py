"""Identifiers that a peer sends: names of databases, ids of nodes, addresses. Checked before anything looks at them.

An identifier ends up in log lines, the status file, tables on terminals and metrics, and is kept in memory for as long
as a peer is connected. So it is short, and every character of it can be printed: none ends a line, moves a cursor or
changes the direction of the text.
"""

from __future__ import annotations

from walcast.errors import ProtocolViolation

IDENTIFIER_MAX_CHARS = 200
DETAIL_MAX_CHARS = 1000

_SHOWN_CHARS = 40


def check_identifier(kind: str, text: str, *, optional: bool = False) -> str:
    """`text`, when it can be an identifier: 1 to 200 characters, all printable; with `optional` it may be empty.

    ProtocolViolation otherwise; `kind` says in the message what it should have been, as in "follower id".
    """
    if not text:
        if optional:
            return text
        raise ProtocolViolation(f"the {kind} is empty")
    if len(text) > IDENTIFIER_MAX_CHARS:
        raise ProtocolViolation(
            f"the {kind} {text[:_SHOWN_CHARS]!r}... has {len(text):,} characters, more than {IDENTIFIER_MAX_CHARS}"
        )
    if not text.isprintable():
        raise ProtocolViolation(f"the {kind} {text[:_SHOWN_CHARS]!a} has characters that cannot be printed")
    return text


def printable(text: str, max_chars: int = DETAIL_MAX_CHARS) -> str:
    """What a peer wrote for people, as one line for a log: shortened, and what is not printable escaped."""
    short = text if len(text) <= max_chars else f"{text[:max_chars]}... ({len(text):,} characters)"
    if short.isprintable():
        return short
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in short)
