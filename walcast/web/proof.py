"""What hosts prove to each other by the secret they share: that a token is theirs, that an edge sent a request on, and
for whom.

    cookie, Walcast-Token      TOKEN[.MAC]                     MAC: 16 hex digits of HMAC-SHA256
    Walcast-Forwarded          t=SECONDS;for=IP;host=HOST;proto=http|https[;mac=MAC]

Without a secret there is no MAC: a token is taken as it is, and a forwarded request is one that must not be forwarded
again, nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from walcast.token import Token

MAC_DIGITS = 32
TOKEN_MAC_DIGITS = 16
FRESH_S = 300.0  # hosts' clocks may differ by so much
TOKENS_MOST = 8

_SAFE = ":[]._-"  # of a host and an address


def token_text(token: Token, secret: bytes) -> str:
    """As it goes into a cookie or a header."""
    return f"{token}.{_mac(secret, TOKEN_MAC_DIGITS, 'token', token)}" if secret else str(token)


def newest_token(texts: Iterable[str], secret: bytes) -> Token | None:
    """Of what a client sent, which may be anything; None when none of it is a token."""
    found = None
    for _, text in zip(range(TOKENS_MOST), texts, strict=False):
        plain, _, mac = text.strip().partition(".")
        if secret and not _same(mac, _mac(secret, TOKEN_MAC_DIGITS, "token", plain)):
            continue
        try:
            token = Token(plain)
        except ValueError:
            continue
        found = token if found is None or token > found else found
    return found


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom an edge forwards for: what the client's request was to the edge."""

    client: str
    host: str
    proto: str


def forwarded_text(origin: Origin, method: str, target: str, now_s: float, secret: bytes) -> str:
    """For the header of a request that is sent on."""
    text = (
        f"t={int(now_s)};for={quote(origin.client, safe=_SAFE)}"
        f";host={quote(origin.host, safe=_SAFE)};proto={'https' if origin.proto == 'https' else 'http'}"
    )
    return f"{text};mac={_mac(secret, MAC_DIGITS, 'forwarded', method, target, text)}" if secret else text


def proven_origin(text: str, method: str, target: str, now_s: float, secret: bytes) -> Origin | None:
    """Whom it is for, when one of our edges says so; None when that is not proven."""
    plain, _, mac = text.rpartition(";mac=")
    expected = _mac(secret, MAC_DIGITS, "forwarded", method, target, plain)
    if not secret or not _same(mac, expected):
        return None
    facts = dict(part.partition("=")[::2] for part in plain.split(";"))
    if abs(now_s - int(facts["t"])) > FRESH_S:
        return None
    return Origin(unquote(facts["for"]), unquote(facts["host"]), facts["proto"])


def _mac(secret: bytes, digits: int, *parts: str) -> str:
    # Each with its length, so that no two lists of parts are the same bytes.
    data = b"".join(b"%d:%s," % (len(raw), raw) for raw in map(_raw, parts))
    return hmac.new(secret, data, hashlib.sha256).hexdigest()[:digits]


def _same(told: str, expected: str) -> bool:
    return hmac.compare_digest(_raw(told), _raw(expected))


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # whatever it is, it is no error
