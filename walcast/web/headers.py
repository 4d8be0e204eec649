"""Which headers go on to the primary's app, and which come back. Names are lower case, names and values latin-1 text.

What is between two neighbours stays there (RFC 9110, 7.6.1), what says who the client is, is said anew, and the body
is framed anew: nothing that a client writes can be read one way here and another way there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

Headers: TypeAlias = list[tuple[str, str]]

TOKEN = "walcast-token"
FORWARDED = "walcast-forwarded"
NOT_PRIMARY = "walcast-not-primary"
STALE = "walcast-stale"
UNCONFIRMED = "walcast-unconfirmed"

_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ]
)
_FOR_ALL = frozenset(["content-length", "content-type", "set-cookie"])  # whatever Connection says
_FRAMING = frozenset(["host", "content-length", "expect"])
# What says whom a request is from; a client must not say it of itself.
_WHO = re.compile(
    r"forwarded|x-forwarded(-.*)?|x-real-ip|x-client-ip|x-cluster-client-ip|true-client-ip|via|x-original-.*|x-rewrite-.*"
)
_OWN = re.compile(r"walcast-(?!token$).*")
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^`|~-]+")  # no underscore: servers would read it as a dash (CGI)
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def to_forward(headers: Iterable[tuple[str, str]], *, trust_forwarded: bool) -> Headers:
    """Of a client's request."""
    # Some servers leave white space where it was.
    listed = [(name, value.strip(" \t")) for name, value in headers]
    dropped = _HOP_BY_HOP | _FRAMING | _named_by_connection(listed)
    return [
        (name, value)
        for name, value in listed
        if name not in dropped
        and _NAME.fullmatch(name)
        and _VALUE.fullmatch(value)
        and not _OWN.fullmatch(name)
        and (trust_forwarded or not _WHO.fullmatch(name))
    ]


def to_answer(headers: Iterable[tuple[str, str]]) -> Headers:
    """Of the primary's answer. The server of this host says itself who it is and what time it is."""
    listed = list(headers)
    dropped = _HOP_BY_HOP | _named_by_connection(listed) | {"server", "date", NOT_PRIMARY}
    if any(name == "transfer-encoding" for name, _ in listed):
        dropped |= {"content-length"}  # it does not count then (RFC 9112, 6.3)
    return [(name, value) for name, value in listed if name not in dropped and _VALUE.fullmatch(value)]


def _named_by_connection(headers: Headers) -> frozenset[str]:
    named = {part.strip().lower() for name, value in headers if name == "connection" for part in value.split(",")}
    # A proxy of ours may have let a client's Connection pass, which must not drop what that proxy said of the client.
    return frozenset(name for name in named if name not in _FOR_ALL and not _WHO.fullmatch(name))


def cookies(header: str, name: str) -> Iterable[str]:
    """The values that a client sent under a name: there may be several, of other paths and domains."""
    for pair in header.split(";"):
        key, equals, text = pair.partition("=")
        if equals and key.strip() == name:
            yield text.strip().strip('"')


def token_headers(text: str, *, cookie: str, max_age_s: int, secure: bool) -> Headers:
    """That give a client its token: as a cookie for browsers, and as a header for programs, which send it back in the
    same one."""
    flags = f"; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"
    return [("set-cookie", f"{cookie}={text}{flags}"), (TOKEN, text)]
