"""Why a node cannot listen on an address, and what to do about it."""

from __future__ import annotations

import errno
import os
import socket

from walcast.oserrors import user_name
from walcast.shortage import reason
from walcast.wire import Address


def bound(address: Address) -> socket.socket:
    """A socket for it, that does not listen yet; OSError. Of a name's addresses the first, IPv4 before IPv6."""
    host = address.host.strip("[]")
    found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
    except BaseException:
        made.close()
        raise
    return made


def why_not(address: Address) -> str:
    """Why nothing could listen there a moment ago: asked anew, of the system itself."""
    try:
        bound(address).close()
    except OSError as error:
        return explained(error)
    return "the port was taken by another process; try again"


def explained(error: OSError) -> str:
    """The reason and the remedy."""
    if isinstance(error, socket.gaierror):
        return f"the host is not known ({reason(error)}); give an address of this machine"
    if error.errno == errno.EADDRINUSE:
        return "the port is taken by another process; stop that one, or give another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "the address is not this machine's; give one that it has, or 0.0.0.0 for all of them"
    if error.errno == errno.EACCES:
        return f"{reason(error)} for {user_name(os.geteuid())}; give a port above 1023"
    return reason(error)
