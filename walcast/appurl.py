"""Where an app answers HTTP: what `--app-url` takes, a primary tells its followers, and requests are forwarded to.

A forwarded request carries a visitor's cookies and passwords, so the address is checked wherever it arrives: in the
configuration, in what a primary says, in the status file, and in the middleware. `AppUrlPolicy` says which addresses
are used:

* `allowed`: origins (`https://app.example.com`), prefixes (`https://app.example.com/shop`) or hosts (`app.example.com`,
  `*.example.com`); without a list, any.
* Plain http is used on this machine only, unless `insecure`.
* An address that only this machine or this link knows, as that of a cloud's metadata service, is never used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from walcast.errors import ConfigError
from walcast.redaction import shown_url

MOST_BYTES = 230  # as much as the status file holds
PORTS = {"http": 80, "https": 443}

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")  # what resolvers take for a part of an IPv4 address
_PATH = re.compile(r"(/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*/?")
_DOUBTFUL = re.compile(r"/(\.|%2[eE]){1,2}(/|;|\Z)|%2[fF]|%5[cC]")  # segments with dots, slashes that do not look so
_SHOWN = 80

_NEVER = (
    ip_network("169.254.0.0/16"),  # link-local, with the metadata services of most clouds
    ip_network("fe80::/10"),
    ip_network("fd00:ec2::254/128"),  # metadata services elsewhere
    ip_network("100.100.100.200/32"),
    ip_network("168.63.129.16/32"),
    ip_network("0.0.0.0/8"),
    ip_network("::/128"),
    ip_network("224.0.0.0/3"),  # multicast, reserved, broadcast
    ip_network("ff00::/8"),
)
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")


@dataclass(frozen=True, slots=True)
class AppUrl:
    """The parts of one: `host` in lower case, without the brackets of IPv6; `path` without a slash at its end."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_loopback(self) -> bool:
        """Does it name this machine?"""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        address = _address(self.host)
        return address is not None and address.is_loopback


def parse_app_url(text: str) -> AppUrl:
    """`http[s]://HOST[:PORT][/PREFIX]`. ConfigError for anything else."""
    error = ConfigError(f"{shown(text)} is not where an app answers: http://HOST:PORT, or https, with a path at most")
    if not text.isascii() or not text.isprintable() or len(text) > MOST_BYTES:
        raise error
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise error from None
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    if parts.scheme not in PORTS or port == 0 or parts.query or parts.fragment or text != parts.geturl():
        raise error
    if not _is_host(host) or not _PATH.fullmatch(parts.path) or _DOUBTFUL.search(parts.path):
        raise error
    plain = host.strip("[]").lower()
    return AppUrl(parts.scheme, plain, PORTS[parts.scheme] if port is None else port, parts.path.rstrip("/"))


def check_app_url(text: str) -> str:
    """`text` without a slash at its end, when it is one; "" stays "". ConfigError for anything else."""
    if text:
        parse_app_url(text)
    return text.rstrip("/")


@lru_cache(maxsize=256)
def known_app_url(text: str) -> str:
    """The same of what somebody else has written: "" for what is none. For what is read again and again."""
    try:
        return check_app_url(text)
    except ConfigError:
        return ""


def shown(text: str) -> str:
    """For a message: printable, short, and without what may be secret in it."""
    return shown_url(text[:_SHOWN])


def is_never_used(host: str) -> bool:
    """Is it an address that no app of another host can have, or that of a service for this machine alone?"""
    address = _address(host)
    return address is not None and any(
        one.version == network.version and one in network for one in _within(address) for network in _NEVER
    )


@dataclass(frozen=True, slots=True)
class _Allowed:
    """One entry of the list; "" and 0: any."""

    scheme: str
    host: str
    port: int
    path: str

    def takes(self, url: AppUrl) -> bool:
        host = url.host.endswith(self.host[1:]) if self.host.startswith("*.") else url.host == self.host
        return (
            host
            and self.scheme in ("", url.scheme)
            and self.port in (0, url.port)
            and (url.path + "/").startswith(self.path + "/")
        )


@dataclass(frozen=True, slots=True)
class AppUrlPolicy:
    """Which addresses of apps are used here. `allowed`: None for any."""

    allowed: tuple[_Allowed, ...] | None = None
    insecure: bool = False

    @classmethod
    def of(cls, allowed: Sequence[str] | None = None, *, insecure: bool = False) -> AppUrlPolicy:
        """ConfigError for an entry that cannot be, or that allows nothing."""
        if allowed is None:
            return cls(None, insecure)
        if isinstance(allowed, str) or not allowed:
            raise ConfigError(f"allowed app URLs: a list of origins or hosts belongs there, not {allowed!r}")
        if not all(isinstance(text, str) for text in allowed):
            raise ConfigError(f"allowed app URLs: texts belong there, not {allowed!r}")
        entries = tuple(_entry(text) for text in allowed)
        for text, entry in zip(allowed, entries, strict=True):
            if entry.scheme == "http" and not insecure and not AppUrl("http", entry.host, 80, "").is_loopback:
                raise ConfigError(_insecure_words(text))
        return cls(entries, insecure)

    def refusal(self, text: str) -> str:
        """Why this address is not used; "" when it is. `text` may be anything."""
        try:
            url = parse_app_url(text)
        except ConfigError as error:
            return str(error)
        if is_never_used(url.host):
            return f"{text} is an address of this machine or link alone, as of a metadata service: it is never used"
        if url.scheme == "http" and not self.insecure and not url.is_loopback:
            return _insecure_words(text)
        if self.allowed is not None and not any(entry.takes(url) for entry in self.allowed):
            return f"{text} is none of the allowed app URLs: add it to them (--allowed-app-url) if it is right"
        return ""

    def check(self, text: str) -> str:
        """What `check_app_url` gives, when it may be used; "" stays "". ConfigError."""
        why = text and self.refusal(text)
        if why:
            raise ConfigError(why)
        return check_app_url(text)

    def lists(self, text: str) -> bool:
        """Is it named by the list, and not only not refused?"""
        return self.allowed is not None and not self.refusal(text)


ANY_APP_URL = AppUrlPolicy()


def _entry(text: str) -> _Allowed:
    error = ConfigError(
        f"{shown(text)} is no app URL that can be allowed: http or https with HOST[:PORT][/PREFIX], or HOST; "
        "HOST may begin with *."
    )
    scheme, there, rest = text.partition("://")
    rest = rest if there else text
    wild = rest.startswith("*.")
    try:
        # A name takes the place of the star, so that both kinds are checked alike.
        url = parse_app_url(f"{scheme if there else 'https'}://{rest.replace('*', 'any', 1) if wild else rest}")
    except ConfigError:
        raise error from None
    if (wild and _address(url.host) is not None) or (not there and ("/" in rest or ":" in rest.rpartition("]")[2])):
        raise error
    host = url.host.replace("any", "*", 1) if wild else url.host
    return _Allowed(scheme if there else "", host, url.port if there else 0, url.path)


def _insecure_words(text: str) -> str:
    return (
        f"{text} is plain http beyond this machine, and visitors' cookies and passwords go there: use https, or, on a "
        "network that nobody can listen to, say --insecure-app-url (insecure_app_url=True in the app)"
    )


def _is_host(host: str) -> bool:
    if host.startswith("["):
        return host.endswith("]") and isinstance(_address(host[1:-1]), IPv6Address) and "%" not in host
    if _NAME.fullmatch(host) is None:
        return False
    # 2852039166 and 0xa9fe.43518 are addresses for a resolver, which nobody would recognise.
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is None or isinstance(_address(host), IPv4Address)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _within(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """It, and the IPv4 address that it stands for."""
    found = [address]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            found.append(address.ipv4_mapped)
        if address in _NAT64:
            found.append(IPv4Address(int(address) & 0xFFFFFFFF))
        if address in _6TO4 and address.sixtofour is not None:
            found.append(address.sixtofour)
    return found
