"""What the kernel says of TCP sockets: sock_diag(7), or `/proc/net/tcp` where that is not to be had.

Both name a user for sockets, too, that are nobody's any more (of one that was closed and waits for its end they say
root), and who asks sock_diag for a connection that does not exist is told of a listener at its port. So only the owner
of a live socket in the wanted state counts.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG of linux/netlink.h
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
_REQUEST = 1  # NLM_F_REQUEST
_ERROR = 2  # NLMSG_ERROR
_ALL_STATES = _NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST_HEAD = struct.Struct("=BBBxI")  # struct inet_diag_req_v2: family, protocol, extensions, states
_PORTS = struct.Struct(">HH")
_REST = struct.Struct("=III")  # interface, cookie
_STATE_AT = _HEADER.size + 1  # in struct inet_diag_msg
_OWNER_AT = _HEADER.size + 4 + 48 + 12
_OWNER = struct.Struct("=II")  # user, inode
_ANSWER_BYTES = 8192
_WAIT_S = 1.0
_LISTEN = 10  # TCP_LISTEN of net/tcp_states.h
_OVERFLOW_UID = 65534  # what the kernel says of users that this user namespace does not have

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address in an IPv6 one
_ANY = {4: ipaddress.ip_address("0.0.0.0"), 6: ipaddress.ip_address("::")}


@dataclass(frozen=True, slots=True)
class _Socket:
    """`inode` is 0 when no process has it (any more, or yet)."""

    state: int
    uid: int
    inode: int

    @property
    def owner(self) -> int | None:
        """None when there is none, or it cannot be told."""
        return self.uid if self.inode and (self.uid != _OVERFLOW_UID or _has_all_users()) else None


@dataclass(frozen=True, slots=True)
class _Row:
    """Of the kernel's table: both ends in hexadecimal, and the socket."""

    local: str
    remote: str
    socket: _Socket


@cache
def _has_all_users() -> bool:
    """Does this process's user namespace have every user? In one that has not, strangers seem to be the same user."""
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(0xFFFFFFFF)]
    except OSError:
        return False


def parse_ip(text: str) -> IP:
    """ValueError for what is none. An IPv4 address that is mapped into IPv6 is that IPv4 address."""
    ip = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def socket_owner(source: IP, source_port: int, target: IP, target_port: int) -> int | None:
    """The user id of the live socket bound to `source` and connected to `target`; None when there is none, or its user
    cannot be told."""
    found = _find(source, source_port, target, target_port)
    return found.owner if found is not None and found.state != _LISTEN else None


def listener_user(ip: IP, port: int) -> int | None:
    """The user id of whoever listens there; None when nobody does. A user that cannot be told is a user."""
    found = _find(ip, port, _ANY[ip.version], 0)
    return found.uid if found is not None and found.state == _LISTEN else None


def only_owner(source: IP, source_port: int, target_port: int) -> int | None:
    """The user id of all sockets bound to `source` and connected to `target_port`, at whichever address; None when
    there is none, they are not of one user, or one is nobody's."""
    owners = {
        row.socket.owner
        for version, name in _names(source, source_port).items()
        for row in _table(version)
        if row.local == name and row.remote.endswith(f":{target_port:04X}")
    }
    return owners.pop() if len(owners) == 1 else None


@dataclass(frozen=True, slots=True)
class Connection:
    """One of this process: `here` is its own end, `there` the other."""

    fd: int
    here: IP
    here_port: int
    there: IP
    there_port: int


def own_connections(port: int) -> list[Connection]:
    """Those of this process to a port."""
    return [one for one in _connections() if one.there_port == port]


def accepted_connections(port: int) -> list[Connection]:
    """Those that this process has accepted at a port."""
    return [one for one in _connections() if one.here_port == port]


def _connections() -> list[Connection]:
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):  # which is quicker than to try
                continue
            end = socket.socket(fileno=int(name))
        except OSError:  # closed by now
            continue
        try:
            if end.family in (socket.AF_INET, socket.AF_INET6) and end.type == socket.SOCK_STREAM:
                here, there = end.getsockname(), end.getpeername()
                found.append(Connection(int(name), parse_ip(here[0]), here[1], parse_ip(there[0]), there[1]))
        except OSError:  # not connected
            pass
        finally:
            end.detach()  # it is another's
    return found


# By sock_diag


def _find(source: IP, source_port: int, target: IP, target_port: int) -> _Socket | None:
    """The socket bound to `source` and connected to `target`, whatever its state; the listener at `source` when there
    is none, as where `target` is unspecified, with port 0."""
    try:
        return _ask_kernel(source, source_port, target, target_port)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        return _look_up(source, source_port, target, target_port)


def _ask_kernel(source: IP, source_port: int, target: IP, target_port: int) -> _Socket:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    names = source.packed.ljust(16, b"\0") + target.packed.ljust(16, b"\0")
    request = _REQUEST_HEAD.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES)
    request += _PORTS.pack(source_port, target_port) + names + _REST.pack(0, _NO_COOKIE, _NO_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _SOCK_DIAG) as netlink:
        netlink.settimeout(_WAIT_S)
        netlink.sendto(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST, 1, 0) + request, (0, 0))
        return socket_in(netlink.recv(_ANSWER_BYTES))


def socket_in(answer: bytes) -> _Socket:
    """The socket that sock_diag's answer describes. OSError for an error, and for what is no answer to the question."""
    try:
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", answer, _HEADER.size)
            raise OSError(-code, "sock_diag answers with an error")
        if kind != _BY_FAMILY:
            raise OSError(errno.EPROTO, f"sock_diag answers with a message of type {kind}")
        uid, inode = _OWNER.unpack_from(answer, _OWNER_AT)
    except struct.error as error:
        raise OSError(errno.EPROTO, f"sock_diag answers with {len(answer)} bytes") from error
    return _Socket(answer[_STATE_AT], uid, inode)


# By /proc


def _look_up(source: IP, source_port: int, target: IP, target_port: int) -> _Socket | None:
    sources, targets = _names(source, source_port), _names(target, target_port)
    for version, name in sources.items():
        for row in _table(version):
            if (row.local, row.remote) == (name, targets[version]):
                return row.socket
    if target_port:
        return None
    listening = {
        name for version in sources for name in (sources[version], _names(_ANY[version], source_port)[version])
    }
    for row in (row for version in sources for row in _table(version)):
        if row.local in listening and row.socket.state == _LISTEN:
            return row.socket
    return None


def _names(ip: IP, port: int) -> dict[int, str]:
    """What the tables call it, by the version of IP: an IPv4 connection may be one of an IPv6 socket."""
    if ip.version == 6:
        return {6: f"{_hex(ip.packed)}:{port:04X}"}
    mapped = _MAPPED + ip.packed
    return {4: f"{_hex(ip.packed)}:{port:04X}", 6: f"{_hex(mapped)}:{port:04X}"}


def _hex(packed: bytes) -> str:
    """Words in the machine's byte order."""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words)


def _table(version: int) -> list[_Row]:
    """The kernel's table of TCP sockets."""
    try:
        return rows_in(Path(f"/proc/net/tcp{'' if version == 4 else '6'}").read_text())
    except OSError:
        return []


def rows_in(table: str) -> list[_Row]:
    """Of the text of /proc/net/tcp (proc(5)); lines that are not whole count for nothing."""
    rows = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        with suppress(IndexError, ValueError):
            rows.append(_Row(fields[1], fields[2], _Socket(int(fields[3], 16), int(fields[7]), int(fields[9]))))
    return rows
