"""What the middleware is told, checked once when it is made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeAlias

from walcast.appurl import AppUrlPolicy
from walcast.errors import ConfigError
from walcast.secret import SecretBytes

PRIMARY = "primary"
UNAVAILABLE = "unavailable"
STALE = "stale"

SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "TRACE"])

Secret: TypeAlias = str | bytes | int | float | None

_COOKIE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def writes_by_method(method: str, path: str) -> bool:
    """Every method but those that HTTP calls safe (RFC 9110, 9.2.1)."""
    return method.upper() not in SAFE_METHODS


def plain_page(status: int, why: str) -> tuple[str, bytes]:
    """One line of text."""
    return "text/plain; charset=utf-8", f"{why}\n".encode()


def _secret_bytes(secret: object) -> bytes:
    """Environments that are read as JSON make numbers of digits. ConfigError, without the value."""
    if isinstance(secret, bytes):
        return secret
    if isinstance(secret, str | int | float) and not isinstance(secret, bool):
        return str(secret).encode()
    if secret is None:
        return b""
    raise ConfigError(f"secret: text, bytes or a number belongs there, not {type(secret).__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All times in seconds, all sizes in bytes.

    `secret`: shared by all hosts; signs cookies and forwarded requests. Where it is set, a forwarded request is taken
    only with a proof of it, once, within 30 seconds. Without it tokens are signed with the database's id, and a
    forwarded request looks to the primary's app as if it came from the edge. `primary_url`: where the primary's app is;
    None: where its node says (`--app-url`). `allowed_app_urls`: where it may be, as `https://HOST[:PORT][/PREFIX]` or
    HOST, which may begin with `*.`; None: anywhere. `insecure_app_url`: by plain http, too, beyond this machine.

    Reads: `read_wait_s` is the longest that a request waits for its token; then `on_stale`: to the "primary", or 503 as
    "unavailable". A replica further behind than `max_lag_s` sends reads to the "primary" (`on_lag`), or answers "stale"
    with a header; that a primary has fallen silent is noticed within four seconds. `monotonic_reads`: every read's
    answer carries a token, so that a visitor who changes from one edge to another never goes back in time.

    Writes: `writes(method, path)` says which requests those are. `primary_wait_s`: for how long a request that
    nothing was sent of yet waits for a primary while there is none. `followers`: the answer to a write waits, at most
    `barrier_s`, until so many followers have it on disk.

    `standalone`: where no node ever ran beside the database, the app here is all there is; for development and tests.
    None: where there is a database file and no state folder beside it, and no `primary_url`; False: never.

    `private`: path prefixes that are always answered here, and never forwarded. `trust_forwarded`: the client's own
    Forwarded and X-Forwarded-* headers come from a proxy of yours and are passed on.

    `tls_ca`: PEM file to trust an https primary by, instead of what the system trusts. `error_page(status, why)` gives
    the content type and the body of the middleware's own answers.

    `max_body`: of a request that is forwarded, at the edge and at the primary; `max_spooled`: of temporary files for
    such bodies, by process. `connect_s`: to connect with the primary's app. `answer_s`: longest silence of the
    primary's app, and, with ASGI, of a client that sends a body. `longest_s`: for all of a forwarded request and its
    answer, after which it is cut off. `max_waiting`: requests of one process that may wait at once; more are answered
    as if they had waited. None: 4 with threads, so that some are left for others, 1000 with gevent or ASGI.
    `max_connections`: to the primary's app, by process. `cookie`: how its name begins; the database's name follows.
    """

    secrets: tuple[SecretBytes, ...] = ()
    primary_url: str | None = None
    allowed_app_urls: tuple[str, ...] | None = None
    insecure_app_url: bool = False
    read_wait_s: float = 1.0
    on_stale: str = PRIMARY
    max_lag_s: float | None = None
    on_lag: str = PRIMARY
    monotonic_reads: bool = False
    writes: Callable[[str, str], bool] = field(default=writes_by_method)
    primary_wait_s: float = 5.0
    followers: int = 0
    barrier_s: float = 2.0
    standalone: bool | None = None
    private: tuple[str, ...] = ()
    trust_forwarded: bool = False
    max_body: int = 64 << 20
    max_spooled: int = 1 << 30
    connect_s: float = 2.0
    answer_s: float = 30.0
    longest_s: float = 600.0
    max_waiting: int | None = None
    max_connections: int = 100
    cookie: str = "walcast"
    cookie_s: int = 60
    tls_ca: str | None = None
    error_page: Callable[[int, str], tuple[str, bytes]] = field(default=plain_page)

    @classmethod
    def of(
        cls,
        *,
        secret: Secret | Sequence[Secret] = None,
        private: Sequence[str] = (),
        allowed_app_urls: Sequence[str] | None = None,
        **told: Any,
    ) -> Options:
        """ConfigError for what cannot be. Of several secrets the first one signs and all are believed, so that they can
        be changed on one host after the other."""
        known = {found.name for found in fields(cls)} - {"secrets"}
        for name in told:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}; known: {', '.join(sorted(known))}")
        if isinstance(private, str):
            raise ConfigError(f"private={private!r}: a sequence of path prefixes belongs there")
        if isinstance(allowed_app_urls, str):
            raise ConfigError(f"allowed_app_urls={allowed_app_urls!r}: a sequence of origins or hosts belongs there")
        allowed = None if allowed_app_urls is None else tuple(allowed_app_urls)
        given = secret if isinstance(secret, Sequence) and not isinstance(secret, str | bytes) else [secret]
        raw = [found for found in map(_secret_bytes, given) if found]
        # Whatever else the app signs with the same secret is of no use here, nor the other way round.
        derived = tuple(SecretBytes(hashlib.sha256(b"walcast.web\0" + one).digest()) for one in raw)
        options = cls(secrets=derived, private=tuple(private), allowed_app_urls=allowed, **told)
        options._check()
        return options

    @property
    def app_urls(self) -> AppUrlPolicy:
        """Which addresses of the primary's app are used."""
        return _policy(self.allowed_app_urls, self.insecure_app_url)

    def _check(self) -> None:
        for name in ("read_wait_s", "primary_wait_s", "barrier_s", "connect_s", "answer_s", "longest_s", "max_lag_s"):
            value = getattr(self, name)
            if name == "max_lag_s" and value is None:
                continue
            if not isinstance(value, int | float) or not 0 <= value < 3600:
                raise ConfigError(f"{name}={value!r}: 0 to 3600 seconds belong there")
        for name in ("followers", "max_body", "max_spooled", "max_waiting", "max_connections", "cookie_s"):
            value = getattr(self, name)
            if name == "max_waiting" and value is None:
                continue
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name}={value!r}: a number belongs there, 0 or more")
        for name in ("monotonic_reads", "trust_forwarded", "standalone", "insecure_app_url"):
            if name == "standalone" and self.standalone is None:
                continue
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: True or False belongs there")
        if self.max_connections == 0:
            raise ConfigError("max_connections=0: nothing could be forwarded")
        if self.on_stale not in (PRIMARY, UNAVAILABLE):
            raise ConfigError(f"on_stale={self.on_stale!r}: 'primary' or 'unavailable'")
        if self.on_lag not in (PRIMARY, STALE):
            raise ConfigError(f"on_lag={self.on_lag!r}: 'primary' or 'stale'")
        if _COOKIE_NAME.fullmatch(self.cookie) is None:
            raise ConfigError(f"cookie={self.cookie!r}: letters, digits, - and _ make its name")
        for prefix in self.private:
            if not isinstance(prefix, str) or not prefix.startswith("/"):
                raise ConfigError(f"private={prefix!r}: a path begins with /")
        try:
            policy = self.app_urls
        except (ConfigError, TypeError, AttributeError) as error:
            raise ConfigError(f"allowed_app_urls: {error}") from None
        if self.primary_url is not None:
            self._check_primary_url(self.primary_url, policy)

    @staticmethod
    def _check_primary_url(url: str, policy: AppUrlPolicy) -> None:
        try:
            known = policy.check(url)
        except ConfigError as error:
            raise ConfigError(f"primary_url: {error}") from None
        if not known:
            raise ConfigError(
                "primary_url='': where the primary's app answers belongs there, as http://HOST:PORT, or None"
            )


@lru_cache(maxsize=64)
def _policy(allowed: tuple[str, ...] | None, insecure: bool) -> AppUrlPolicy:
    return AppUrlPolicy.of(allowed, insecure=insecure)
