"""Tokens: 256 random bits that whoever holds them shows, and their hashes, by which a server knows whose they are.

A token file has one line for each:

    # comments and empty lines count for nothing
    wct_Zk3…                      the token that this process shows to others; one at most
    edge-1 sha256:5f3a…           whom this process accepts; a name may have several, so that tokens can be changed

A token is random enough that its plain SHA-256 tells nothing of it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from walcast.access.names import is_name
from walcast.access.secretfile import read_secret
from walcast.errors import ConfigError

PREFIX = "wct_"
RANDOM_BYTES = 32
FILE_BYTES = 256 << 10
ACCEPTED_MOST = 1000
PRESENTED_CHARACTERS = 256

_TOKEN = re.compile(r"wct_[A-Za-z0-9_-]{43,200}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


def new_token() -> str:
    """Nobody else's."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def is_token(text: str) -> bool:
    """Could it be one?"""
    return bool(_TOKEN.fullmatch(text))


def token_line(name: str, token: str) -> str:
    """What the file of a server that accepts it needs."""
    if not _is_token_name(name):
        rule = "1 to 200 printable characters, no spaces, no # at its start"
        raise ConfigError(f"{name[:200]!a} cannot be the name of a token: {rule}")
    return f"{name} sha256:{_digest(token).hex()}"


def bearer(token: str) -> str:
    """As the value of `authorization`."""
    return f"Bearer {token}"


def token_in(authorization: str | None) -> str | None:
    """Of the value of `authorization`; None when it has none."""
    if authorization is None or len(authorization) > PRESENTED_CHARACTERS:
        return None
    match = _BEARER.fullmatch(authorization.strip())
    return match[1] if match else None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token file says. `own` is the token to show, "" for none; `accepted` has names and SHA-256 digests."""

    own: str = field(default="", repr=False)
    accepted: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    def identity(self, presented: str | None) -> str | None:
        """Whose token it is; None for nobody's. It is compared with every accepted one, whichever it is."""
        if presented is None or len(presented) > PRESENTED_CHARACTERS or not is_token(presented):
            return None
        digest = _digest(presented)
        found: str | None = None
        for name, accepted in self.accepted:
            if hmac.compare_digest(accepted, digest):
                found = name
        return found

    @property
    def names(self) -> list[str]:
        """Of those that are accepted."""
        return sorted({name for name, _ in self.accepted})


def read_tokens(path: Path) -> Tokens:
    """Of a file that nobody else can read. ConfigError, never with the contents of a line, when something is wrong."""
    return parse_tokens(read_secret(path, FILE_BYTES), path)


def parse_tokens(data: bytes, path: Path) -> Tokens:
    """The contents of such a file."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8") from error
    own, accepted = "", list[tuple[str, bytes]]()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if is_token(line):
            if own:
                raise ConfigError(f"{path}:{number}: a second token; a process shows one")
            own = line
            continue
        name, _, digest = line.partition(" ")
        match = _HASH.fullmatch(digest.strip())
        if not match or not _is_token_name(name):
            raise ConfigError(
                f"{path}:{number}: neither a token nor NAME sha256:HEX; `walcast certs token` prints both"
            )
        accepted.append((name, bytes.fromhex(match[1])))
        if len(accepted) > ACCEPTED_MOST:
            raise ConfigError(f"{path}:{number}: more than {ACCEPTED_MOST} tokens")
    _check_owners(path, accepted)
    return Tokens(own, tuple(accepted))


def _check_owners(path: Path, accepted: list[tuple[str, bytes]]) -> None:
    owners: dict[bytes, str] = {}
    for name, digest in accepted:
        if owners.setdefault(digest, name) != name:
            raise ConfigError(f"{path}: {owners[digest]} and {name} have the same token; give each one its own")


def _is_token_name(text: str) -> bool:
    return is_name(text) and not text.startswith("#") and not any(character.isspace() for character in text)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
