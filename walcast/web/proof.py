"""What hosts prove to each other by the secret they share: that a token is theirs, that an edge sent a request on, and
for whom.

    cookie, Walcast-Token      TOKEN.MAC                       MAC: 16 hex digits of HMAC-SHA256
    Walcast-Forwarded          t=SECONDS;v=2;n=NONCE;body=SHA256;db=NAME;for=IP;host=HOST;proto=http|https;mac=MAC
    without a secret           t=SECONDS;db=NAME;for=IP;host=HOST;proto=http|https

A token is of one database, whose name its MAC covers. Where the app has no secret, the key is the database's id, which
all its nodes know and no visitor does. Of several secrets the first one signs, all are believed.

The MAC of a forwarded request covers its method, its path and query, and all that stands before it in the header: the
time, a nonce, the digest of the body, the database, and whom it is for. It is taken within FRESH_S and once. A walcast
that knows no version, nonce and body takes it as one of its own; one of that walcast is refused here, since nothing
says what its body was, and it could be repeated. Without a secret a forwarded request is one that must not be forwarded
again, nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets as random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote

from walcast.token import Token

MAC_DIGITS = 32
TOKEN_MAC_DIGITS = 16
FRESH_S = 30.0  # by the clocks of two hosts, which may differ a little
VERSION = "2"
NONCE_DIGITS = 32
TOKENS_MOST = 8

_SAFE = ":[]._-"  # of a host and an address

_FACTS = re.compile(
    r"t=(?P<t>[0-9]{1,12});v=(?P<v>[0-9]{1,4});n=(?P<n>[0-9a-f]{32});body=(?P<body>[0-9a-f]{64})"
    r";db=[^;]*;for=(?P<client>[^;]*);host=(?P<host>[^;]*);proto=(?P<proto>https?)"
)
_OLD = re.compile(r"t=[0-9]{1,12};db=[^;]*;for=[^;]*;host=[^;]*;proto=https?")

Secrets = Sequence[bytes]


class Flaw(StrEnum):
    """What is wrong with a proof."""

    UNSIGNED = "unsigned"
    OTHER_SECRET = "other secret"
    OLDER = "older walcast"
    UNKNOWN = "unknown version"
    TIME = "time"


class Unproven(Exception):
    """No edge of ours has sent this on, as far as can be told; the text says why, and what to do."""

    def __init__(self, flaw: Flaw, why: str) -> None:
        super().__init__(why)
        self.flaw = flaw


def token_text(token: Token, name: str, secrets: Secrets) -> str:
    """As it goes into a cookie or a header; `name` is the database's."""
    return f"{token}.{_mac(secrets[0], TOKEN_MAC_DIGITS, 'token', name, token)}" if secrets else str(token)


def token_keys(secrets: Secrets, database_id: str) -> Secrets:
    """By which tokens are signed: the app's secrets, or what visitors do not know either."""
    if secrets or not database_id:
        return secrets
    return (hashlib.sha256(b"walcast.web\0token\0" + _raw(database_id)).digest(),)


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


@dataclass(frozen=True, slots=True)
class Proof:
    """That an edge of ours forwards for `origin`, with a body of that digest, in hex; `until_s`: the last second in
    which it may be taken, by this host's clock."""

    origin: Origin
    body_sha256: str
    nonce: bytes
    until_s: int


def forwarded_text(
    origin: Origin, name: str, method: str, target: str, body_sha256: str, now_s: float, secrets: Secrets
) -> str:
    """For the header of a request that is sent on, a new one each time; `name` is the database's."""
    when = f"t={int(now_s)}"
    whom = (
        f"db={quote(name, safe=_SAFE)};for={quote(origin.client, safe=_SAFE)}"
        f";host={quote(origin.host, safe=_SAFE)};proto={'https' if origin.proto == 'https' else 'http'}"
    )
    if not secrets:
        return f"{when};{whom}"
    text = f"{when};v={VERSION};n={random.token_hex(NONCE_DIGITS // 2)};body={body_sha256};{whom}"
    return f"{text};mac={_mac(secrets[0], MAC_DIGITS, 'forwarded', method, target, text)}"


def forwarded_name(text: str) -> str:
    """Which database whoever sent this wants, as it says; "" when it does not say."""
    return unquote(_facts(text).get("db", ""))


def proof_of(text: str, method: str, target: str, now_s: float, secrets: Secrets) -> Proof:
    """What the header of a forwarded request proves; that it was not taken before, and that the body is the one that it
    names, is still to be seen. Unproven."""
    plain, _, mac = text.rpartition(";mac=")
    if not plain:
        raise Unproven(Flaw.UNSIGNED, "it is not signed: the edge has no secret; give every host the same one")
    if not _proves(mac, secrets, MAC_DIGITS, "forwarded", method, target, plain):
        why = "it is signed with another secret, or was changed on its way; give every host the same secret"
        raise Unproven(Flaw.OTHER_SECRET, why)
    if _OLD.fullmatch(plain):
        why = (
            "the edge runs an older walcast, whose forwarded requests could be changed and repeated: upgrade the edges "
            "before the primary"
        )
        raise Unproven(Flaw.OLDER, why)
    facts = _FACTS.fullmatch(plain)
    if facts is None or facts["v"] != VERSION:
        why = f"its version is not the one that this host takes ({VERSION}): run the same walcast on both hosts"
        raise Unproven(Flaw.UNKNOWN, why)
    at_s = int(facts["t"])
    if abs(now_s - at_s) > FRESH_S:
        why = (
            f"it is of {abs(now_s - at_s):.0f} s {'ago' if now_s > at_s else 'ahead'} by this host's clock, and "
            f"{FRESH_S:.0f} s are allowed: set the clocks of both hosts, as with NTP, unless it was repeated"
        )
        raise Unproven(Flaw.TIME, why)
    origin = Origin(unquote(facts["client"]), unquote(facts["host"]), facts["proto"])
    return Proof(origin, facts["body"], bytes.fromhex(facts["n"]), at_s + int(FRESH_S) + 1)


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
