"""Log and audit lines with the words of others: one line each, whatever is in them, and JSON that can be read."""

from __future__ import annotations

import json
import logging
import sys

from support.logfmt import parse_logfmt

from walcast.errors import Unavailable
from walcast_node.process.logs import Human, Json

TOKENS = [
    b"\n",
    b"\r",
    b"\x1b[2J",
    b"\x00",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xe2\x80\xae",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
]
TOKENS += [b"secret=", b"s3://a:b@", b"authorization: Bearer ", b"%40", b'"', b"'", b"AWS4-HMAC-SHA256 ", b"\x7f"]
HUMAN, JSON = Human(), Json()


def seeds() -> list[bytes]:
    found = [
        b"denied\0node:edge-1\0ipv4:127.0.0.1:4711\0StepDown\0app",
        b"role\0user:0\0\0primary\0tenants/a",
        b"trying again\0nobody\0s3://bucket/a?secret=b\0header value 'x'\0https://a:b@host/c does not answer",
        "denied\0token:\u202eann\0[::1]:7\0Copy\0\u2028\u0085".encode(),
    ]
    return [bytes([kind]) + words for words in found for kind in range(4)]


def target(data: bytes) -> None:
    kind, data = data[0] if data else 0, data[1:]
    event, *words = data.decode("utf-8", "surrogateescape").split("\0", 4)
    names = ("identity", "peer", "method", "database")
    facts = dict(zip(names, words, strict=False)) | {"followers": words, "error": Unavailable(event)}
    record = logging.makeLogRecord({"name": "walcast.audit", "levelname": "WARNING", "msg": event} | facts)
    if kind & 1:
        try:
            raise Unavailable("\n".join(words))
        except Unavailable:
            record.exc_info = sys.exc_info()
    if kind & 2:
        line = JSON.format(record)
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["logger"] == "walcast.audit"
        return
    line = HUMAN.format(record)
    assert line.isprintable(), line
    parsed = parse_logfmt(line)
    assert list(parsed)[:3] == ["time", "level", "msg"], line
    assert parsed.keys() - {"traceback"} == {"time", "level", "msg", "error", "followers"} | {*names[: len(words)]}, (
        line
    )
