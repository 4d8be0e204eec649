"""What hosts prove to each other by the secret they share: that a token is theirs, that an edge sent a request on, and
for whom.

    cookie, Walcast-Token      TOKEN[.MAC]                     MAC: 16 hex digits of HMAC-SHA256
    Walcast-Forwarded          t=SECONDS;db=NAME;for=IP;host=HOST;proto=http|https[;mac=MAC]

A token is of one database, whose name its MAC covers. Of several secrets the first one signs, all are believed. Without
a secret there is no MAC: a token is taken as it is, and a forwarded request is one that must not be forwarded again,
nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from walcast.token import Token

MAC_DIGITS = 32
TOKEN_MAC_DIGITS = 16
FRESH_S = 300.0  # hosts' clocks may differ by so much
TOKENS_MOST = 8

_SAFE = ":[]._-"  # of a host and an address

Secrets = Sequence[bytes]


def token_text(token: Token, name: str, secrets: Secrets) -> str:
    """As it goes into a cookie or a header; `name` is the database's."""
    return f"{token}.{_mac(secrets[0], TOKEN_MAC_DIGITS, 'token', name, token)}" if secrets else str(token)


def newest_token(texts: Iterable[str], name: str, secrets: Secrets) -> Token | None:
    """Of what a client sent, which may be anything; None when none of it is a token of the database."""
    found = None
    for _, text in zip(range(TOKENS_MOST), texts, strict=False):
        plain, _, mac = text.strip().partition(".")
        if secrets and not _proves(mac, secrets, TOKEN_MAC_DIGITS, "token", name, plain):
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


def forwarded_text(origin: Origin, name: str, method: str, target: str, now_s: float, secrets: Secrets) -> str:
    """For the header of a request that is sent on; `name` is the database's."""
    text = (
        f"t={int(now_s)};db={quote(name, safe=_SAFE)};for={quote(origin.client, safe=_SAFE)}"
        f";host={quote(origin.host, safe=_SAFE)};proto={'https' if origin.proto == 'https' else 'http'}"
    )
    return f"{text};mac={_mac(secrets[0], MAC_DIGITS, 'forwarded', method, target, text)}" if secrets else text


def forwarded_name(text: str) -> str:
    """Which database whoever sent this wants, as it says; "" when it does not say."""
    return unquote(_facts(text).get("db", ""))


def proven_origin(text: str, method: str, target: str, now_s: float, secrets: Secrets) -> Origin | None:
    """Whom it is for, when one of our edges says so; None when that is not proven."""
    plain, _, mac = text.rpartition(";mac=")
    if not secrets or not _proves(mac, secrets, MAC_DIGITS, "forwarded", method, target, plain):
        return None
    facts = _facts(plain)
    if abs(now_s - int(facts["t"])) > FRESH_S:
        return None
    return Origin(unquote(facts["for"]), unquote(facts["host"]), facts["proto"])


def _facts(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split(";"))


def _proves(mac: str, secrets: Secrets, digits: int, *parts: str) -> bool:
    return any([hmac.compare_digest(_raw(mac), _raw(_mac(secret, digits, *parts))) for secret in secrets])  # noqa: C419 - all, so that it takes the same time


def _mac(secret: bytes, digits: int, *parts: str) -> str:
    # Each with its length, so that no two lists of parts are the same bytes.
    data = b"".join(b"%d:%s," % (len(raw), raw) for raw in map(_raw, parts))
    return hmac.new(secret, data, hashlib.sha256).hexdigest()[:digits]


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # whatever it is, it is no error
