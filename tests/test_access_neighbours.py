"""Which user a peer on this machine runs as: by the kernel's word, never by an address."""

from __future__ import annotations

import encodings.idna
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from walcast.access import neighbours
from walcast.access.neighbours import listener_is_ours, peer_user, socket_owner
from walcast.wire import Address

assert encodings.idna  # loaded before a child gives up the right to read it
STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")


def address_of(listener: socket.socket) -> Address:
    host, port = listener.getsockname()[:2]
    return Address(f"[{host}]" if ":" in host else host, port)


def named(peer: tuple[str, int]) -> str:
    return f"ipv6:%5B{peer[0]}%5D:{peer[1]}" if ":" in peer[0] else f"ipv4:{peer[0]}:{peer[1]}"


@contextmanager
def as_stranger(role: str, address: tuple[str, int]) -> Iterator[int]:
    """A process of another user that connects there, or listens there (then the port it chose)."""
    down, up = os.pipe()
    pid = os.fork()
    if not pid:
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        made = socket.create_connection(address) if role == "connect" else socket.create_server(address)
        os.write(up, made.getsockname()[1].to_bytes(2, "big"))
        os.close(up)
        signal.pause()
    try:
        os.close(up)
        yield int.from_bytes(os.read(down, 2), "big")
    finally:
        os.close(down)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1"])
@pytest.mark.parametrize("by_proc", [False, True])
def test_a_peer_of_our_own_user_is_known(host: str, by_proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_proc:
        monkeypatch.setattr(neighbours, "_ask_kernel", refuse)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.create_server((host, 0), family=family)) as listener:
        address = listener.getsockname()[:2]
        with closing(socket.create_connection(address)), closing(listener.accept()[0]) as connection:
            assert peer_user(named(connection.getpeername()[:2]), address_of(listener)) == os.geteuid()
        assert listener_is_ours(address_of(listener))


def refuse(*_: object) -> int:
    raise OSError(93, "no sock_diag here")


def test_a_peer_of_a_listener_on_all_addresses_is_known() -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as listener:
        address = "127.0.0.1", listener.getsockname()[1]
        with closing(socket.create_connection(address)), closing(listener.accept()[0]) as connection:
            assert peer_user(named(connection.getpeername()), address_of(listener)) == os.geteuid()


def test_a_peer_that_has_no_socket_here_is_nobody() -> None:
    listening = Address("127.0.0.1", 7420)
    for peer in ("ipv4:127.0.0.1:1", "ipv4:192.0.2.7:4711", "ipv6:%5B2001:db8::1%5D:4711", "unix:", "", "ipv4:x:y"):
        assert peer_user(peer, listening) is None


@as_root
def test_a_peer_of_another_user_is_that_user() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = listener.getsockname()
        with as_stranger("connect", address), closing(listener.accept()[0]) as connection:
            assert peer_user(named(connection.getpeername()), address_of(listener)) == STRANGER


@as_root
def test_a_listener_of_another_user_is_not_ours() -> None:
    with as_stranger("listen", ("127.0.0.1", 0)) as port:
        assert not listener_is_ours(Address("127.0.0.1", port))
        assert not listener_is_ours(Address("localhost", port))
        home = ipaddress.ip_address("127.0.0.1")
        assert socket_owner(home, port, ipaddress.ip_address("0.0.0.0"), 0) == STRANGER


def test_where_nobody_listens_nobody_is_a_stranger() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = address_of(listener)
    assert listener_is_ours(address)
    assert listener_is_ours(Address("192.0.2.7", 7420))
