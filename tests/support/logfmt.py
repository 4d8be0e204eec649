"""logfmt as github.com/go-logfmt/logfmt takes it, and no more than that."""

from __future__ import annotations

import json
import re

_PAIR = re.compile(
    r'(?P<key>[^\s="\x00-\x1f]+)=(?:"(?P<quoted>(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)"|(?P<bare>[^\s="\x00-\x1f\\]+))'
)


def parse_logfmt(line: str) -> dict[str, str]:
    """The facts of a line; AssertionError where it is none."""
    facts: dict[str, str] = {}
    at = 0
    while at < len(line):
        pair = _PAIR.match(line, at)
        assert pair, f"no logfmt at {at}: {line!r}"
        assert pair["key"] not in facts, f"{pair['key']} twice: {line!r}"
        facts[pair["key"]] = pair["bare"] if pair["bare"] is not None else json.loads(f'"{pair["quoted"]}"')
        at = pair.end()
        if at < len(line):
            assert line[at] == " ", f"no blank at {at}: {line!r}"
            at += 1
    return facts
