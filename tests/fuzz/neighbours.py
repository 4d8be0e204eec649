"""What the kernel says of a socket's owner, and the peers that gRPC names: whoever is not understood is nobody."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from walcast.access.neighbours import peer_user
from walcast.access.sockets import rows_in, socket_in
from walcast.wire import Address

ALLOWED = (OSError,)  # after which /proc is asked
HERE = ipaddress.ip_address("127.0.0.1")
LISTENING = Address("127.0.0.1", 7420)
TABLE = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1CFC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 000000008ea 100 0 0 10 0
   1: 0100007F:C001 0100007F:1CFC 01 00000000:00000000 00:00000000 00000000  1001        0 4712 1 000000008eb 20 4 30 10 -1
   2: 0100007F:C002 0100007F:1CFC 05 00000000:00000000 03:00001755 00000000     0        0 0 3 00000000efe
"""  # noqa: E501
TOKENS = [b"ipv4:", b"ipv6:", b"%5B", b"%5D", b"::1", b"::ffff:127.0.0.1", b"%25lo", b":", b"127.0.0.1", b"\xc2\xb2"]
TOKENS += [b"0100007F:C001", b"0100007F:1CFC", b" ", b"\n"]


@contextmanager
def running() -> Iterator[None]:
    with mock.patch("walcast.access.neighbours.socket_owner", return_value=7):
        yield


def answer(uid: int, inode: int) -> bytes:
    """As the kernel packs it: nlmsghdr, inet_diag_msg."""
    body = struct.pack("=BBBB", 2, 1, 0, 0) + struct.pack(">HH", 49153, 7420) + HERE.packed.ljust(16, b"\0") * 2
    body += struct.pack("=IIIIIIII", 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0, 0, uid, inode)
    return struct.pack("=IHHII", 16 + len(body), 20, 0, 1, 0) + body


def seeds() -> list[bytes]:
    refused = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -2) + bytes(16)
    peers = [b"ipv4:127.0.0.1:49153", b"ipv6:%5B::1%5D:49153", b"ipv6:%5B::ffff:127.0.0.1%5D:49153", b"unix:/x"]
    answers = [answer(1000, 4711), answer(0, 0), refused]
    return [*(b"\0" + one for one in answers), b"\1" + TABLE, *(b"\2" + one for one in peers)]


def target(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    if kind == b"\0":
        owner = socket_in(data).owner
        assert owner is None or 0 <= owner < 1 << 32
    elif kind == b"\1":
        rows_in(data.decode("latin-1"))
    else:
        assert peer_user(data.decode("utf-8", "replace"), LISTENING) in (None, 7)
