"""Which user a TCP peer on this machine runs as, asked of the kernel.

An address proves nothing: any user of the machine may connect to 127.0.0.1, and may listen there while a primary is
down. The kernel knows the owner of every socket and tells it through sock_diag(7), or in `/proc/net/tcp`. A socket
belongs to the effective user of the process that made it; an accepted one to that of the listener.

A peer behind a proxy is the proxy: a proxy that runs as the user of walcast must decide itself whom it lets through.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from walcast.errors import Unavailable
from walcast.wire import Address

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG of linux/netlink.h
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
_REQUEST = 1  # NLM_F_REQUEST
_ERROR = 2  # NLMSG_ERROR
_ALL_STATES = _NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST_HEAD = struct.Struct("=BBBxI")  # struct inet_diag_req_v2: family, protocol, extensions, states
_PORTS = struct.Struct(">HH")
_REST = struct.Struct("=III")  # interface, cookie
_UID_AT = _HEADER.size + 4 + 48 + 12  # in struct inet_diag_msg
_ANSWER_BYTES = 8192
_WAIT_S = 1.0

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def peer_user(peer: str, listening: Address) -> int | None:
    """The user id of a gRPC peer, "ipv4:127.0.0.1:41234"; None when it is on another machine, or nobody knows.

    `listening` is where it connected to.
    """
    if peer.startswith("unix:"):
        return None  # walcast listens on no such socket for gRPC
    scheme, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if scheme not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return user_of(host.strip("[]"), int(port), listening)


def user_of(host: str, port: int, listening: Address) -> int | None:
    """As `peer_user`, of the TCP peer `host`, `port`."""
    try:
        remote = _plain(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return None
    for local in _candidates(remote, listening):
        uid = socket_owner(remote, port, local, listening.port)
        if uid is not None:
            return uid
    return None


def listener_is_ours(address: Address) -> bool:
    """Is whoever listens at this address of this machine our own user? So it is for one that nobody listens at, and for
    one of another machine: to those this does not apply."""
    for ip in _loopback(address):
        uid = _listener(ip, address.port)
        if uid is not None and uid != os.geteuid():
            return False
    return True


def check_neighbour(address: Address) -> None:
    """Unavailable when another user of this machine answers at this address: it may be anybody who took the port of a
    primary that is down."""
    if not listener_is_ours(address):
        raise Unavailable(
            f"{address}: whoever listens there is another user of this machine: run both as the same user, or use TLS"
        )


def _plain(ip: _IP) -> _IP:
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _candidates(remote: _IP, listening: Address) -> list[_IP]:
    """What the peer may have connected to. Only a peer that is on this machine has a socket here."""
    found: list[_IP] = [remote]
    if remote.is_loopback:
        found.append(ipaddress.ip_address("127.0.0.1" if remote.version == 4 else "::1"))
    with suppress(ValueError):
        found.append(_plain(ipaddress.ip_address(listening.host.strip("[]"))))
    return [ip for ip in dict.fromkeys(found) if ip.version == remote.version and not ip.is_unspecified]


def _loopback(address: Address) -> list[_IP]:
    if address.host == "localhost":
        return [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    if not address.is_loopback:
        return []
    return [ipaddress.ip_address(address.host.strip("[]"))]


def _listener(ip: _IP, port: int) -> int | None:
    return socket_owner(ip, port, ipaddress.ip_address("0.0.0.0" if ip.version == 4 else "::"), 0)


def socket_owner(source: _IP, source_port: int, target: _IP, target_port: int) -> int | None:
    """The user id of the socket bound to `source` and connected to `target` (unspecified, port 0: of the listener at
    `source`); None when there is none."""
    try:
        return _ask_kernel(source, source_port, target, target_port)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        return _look_up(source, source_port, target, target_port)


def _ask_kernel(source: _IP, source_port: int, target: _IP, target_port: int) -> int | None:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    names = source.packed.ljust(16, b"\0") + target.packed.ljust(16, b"\0")
    request = _REQUEST_HEAD.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES)
    request += _PORTS.pack(source_port, target_port) + names + _REST.pack(0, _NO_COOKIE, _NO_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _SOCK_DIAG) as netlink:
        netlink.settimeout(_WAIT_S)
        netlink.sendto(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST, 1, 0) + request, (0, 0))
        answer = netlink.recv(_ANSWER_BYTES)
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-code, os.strerror(-code))
    (uid,) = struct.unpack_from("=I", answer, _UID_AT)
    return int(uid)


def _look_up(source: _IP, source_port: int, target: _IP, target_port: int) -> int | None:
    """In /proc, where sock_diag is not to be had."""
    wanted = f"{_hex(source)}:{source_port:04X}", f"{_hex(target)}:{target_port:04X}"
    try:
        lines = Path(f"/proc/net/tcp{'' if source.version == 4 else '6'}").read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if (fields[1], fields[2]) == wanted:
            return int(fields[7])
    return None


def _hex(ip: _IP) -> str:
    """As the kernel prints it: words in the machine's byte order."""
    words = struct.unpack(f"={len(ip.packed) // 4}I", ip.packed)
    return "".join(f"{word:08X}" for word in words)
