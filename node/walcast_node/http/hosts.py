"""Which Host headers are answered.

A page of another site can have its own name resolve to an address of this machine (DNS rebinding); the browser then
lets that page read the answers. Such a request names the other site in its Host header, so only known names are
answered: the address that was connected to, the one listened on, a name for loopback, and those that were configured.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from walcast.errors import ConfigError
from walcast_node.http.near import ip_of

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}))(?::[0-9]{1,5})?", re.ASCII)


def check_host_name(text: str) -> str:
    """A name or address for `--http-host`, in the form that `is_known` compares; ConfigError when it is neither."""
    name = host_of(text)
    if name is None or (ip_of(text.strip("[]")) is None and ":" in text):
        raise ConfigError(f"{text[:80]!r} is not a host name: give a name or an address without a port, as db1.example")
    return name


def host_of(header: str) -> str | None:
    """The host of `HOST[:PORT]`, in lower case, without brackets and final dot; None when it is malformed."""
    text = header.lower()
    if ":" in text and "%" not in text and not text.startswith("[") and ip_of(text) is not None:
        return text  # an IPv6 address without brackets, as somebody may configure it; one with a zone is no host here
    found = _HOST.fullmatch(text)
    return found[1].strip("[]").removesuffix(".") if found else None


def is_known(header: str, local: str, listening: str, names: Collection[str]) -> bool:
    """May a request with this Host header be answered?

    `local` is the address that the client connected to, `listening` the host that was configured to listen on. The
    port is not compared: port forwarding changes it, and a page cannot choose it apart from the name.
    """
    host = host_of(header)
    if host is None:
        return False
    if host == "localhost" or host in names:
        return True
    address = ip_of(host)
    if address is None:
        return host == listening.lower().removesuffix(".")
    return address.is_loopback or address in (ip_of(local), *(ip_of(name) for name in names))
