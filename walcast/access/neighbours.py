"""Which user a TCP peer on this machine runs as, asked of the kernel.

An address proves nothing: any user of the machine may connect to 127.0.0.1, and may listen there while a primary is
down. The kernel knows the owner of every socket (`sockets.py`). A socket belongs to the effective user of the process
that made it; an accepted one to that of the process that accepted it.

A peer behind a proxy is the proxy: a proxy that runs as the user of walcast must decide itself whom it lets through.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from urllib.parse import unquote

from walcast.access.sockets import IP, listener_user, only_owner, own_connections, parse_ip, socket_owner
from walcast.errors import Unavailable
from walcast.wire import Address

_PORT = re.compile(r"[0-9]{1,5}")
_PORT_MAX = 65535
_HOME = {4: ipaddress.ip_address("127.0.0.1"), 6: ipaddress.ip_address("::1")}


def peer_user(peer: str, listening: Address) -> int | None:
    """The user id of a gRPC peer, "ipv4:127.0.0.1:41234"; None when it is on another machine, or nobody knows.

    `listening` is where it connected to.
    """
    end = parse_peer(peer)
    return None if end is None else _user_of(*end, listening)


def parse_peer(peer: str) -> tuple[IP, int] | None:
    """Address and port of a gRPC peer; None for what has none, as a unix socket, on which walcast does not listen."""
    scheme, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if scheme not in ("ipv4", "ipv6") or not _PORT.fullmatch(port) or int(port) > _PORT_MAX:
        return None
    try:
        return parse_ip(host), int(port)
    except ValueError:
        return None


def user_of(host: str, port: int, listening: Address) -> int | None:
    """As `peer_user`, of the TCP peer `host`, `port`."""
    try:
        return _user_of(parse_ip(host), port, listening)
    except ValueError:
        return None


def _user_of(remote: IP, port: int, listening: Address) -> int | None:
    local = _only_address(remote, listening)
    if local is not None:
        return socket_owner(remote, port, local, listening.port)
    # The listener has several addresses, and gRPC does not say to which of them this peer has connected.
    return only_owner(remote, port, listening.port) if _is_here(remote) else None


def _only_address(remote: IP, listening: Address) -> IP | None:
    """To which the peer must have connected; None when there are several, or nobody knows."""
    if listening.host == "localhost":
        return _HOME[remote.version]
    try:
        ip = parse_ip(listening.host)
    except ValueError:
        return None
    return None if ip.is_unspecified or ip.version != remote.version else ip


def _is_here(ip: IP) -> bool:
    """Is it an address of this machine? Only then has a peer with it a socket here."""
    if ip.is_loopback:
        return True
    with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True


def listener_is_ours(address: Address) -> bool:
    """Is whoever listens at this address of this machine our own user? So it is for one that nobody listens at, and for
    one of another machine: to those this does not apply."""
    users = (listener_user(ip, address.port) for ip in _loopback(address))
    return all(user in (None, os.geteuid()) for user in users)


def check_neighbour(address: Address) -> None:
    """Before a connection. Unavailable when another user of this machine listens at this address: it may be anybody who
    took the port of a primary that is down."""
    if not listener_is_ours(address):
        raise _another_user(address)


def check_connected(address: Address) -> None:
    """As `check_neighbour`, once the server at this address has answered: who listens now, if anybody does, need not be
    who accepted. Unavailable, too, when this process has no connection there any more."""
    ips = _loopback(address)
    if not ips:
        return
    ends = [one for one in own_connections(address.port) if one.there in ips]
    if not ends:
        raise Unavailable(f"{address}: hung up before it was known which user answered there")
    owners = (socket_owner(one.there, one.there_port, one.here, one.here_port) for one in ends)
    if any(owner != os.geteuid() for owner in owners):
        raise _another_user(address)


def _another_user(address: Address) -> Unavailable:
    return Unavailable(
        f"{address}: whoever answers there is another user of this machine: run both as the same user, or use TLS"
    )


def _loopback(address: Address) -> list[IP]:
    if address.host == "localhost":
        return list(_HOME.values())
    return [parse_ip(address.host)] if address.is_loopback else []
