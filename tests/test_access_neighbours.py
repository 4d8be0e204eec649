"""Which user a peer on this machine runs as: by the kernel's word, never by an address."""

from __future__ import annotations

import encodings.idna
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import grpc
import pytest

from walcast.access import sockets
from walcast.access.neighbours import check_connected, check_neighbour, listener_is_ours, peer_user, user_of
from walcast.access.sockets import listener_user, only_owner
from walcast.errors import ConfigError, Unavailable
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.wire import Address, Tls, open_channel

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
        monkeypatch.setattr(sockets, "_ask_kernel", refuse)
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
    wrong = "unix:", "", "ipv4:x:y", "ipv4:127.0.0.1:\u00b2", "ipv4:127.0.0.1:65536", "ipv4:127.0.0.1:" + "1" * 5000
    for peer in ("ipv4:127.0.0.1:1", "ipv4:192.0.2.7:4711", "ipv6:%5B2001:db8::1%5D:4711", *wrong):
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
        assert listener_user(home, port) == STRANGER


def test_where_nobody_listens_nobody_is_a_stranger() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = address_of(listener)
    assert listener_is_ours(address)
    assert listener_is_ours(Address("192.0.2.7", 7420))


@contextmanager
def connected(listener: socket.socket, port: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client of this process and the server's end, to which `port` is the client's."""
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", port))
        client.connect(("127.0.0.1", listener.getsockname()[1]))
        with closing(listener.accept()[0]) as server:
            yield client, server


@pytest.mark.parametrize("by_proc", [False, True])
def test_a_peer_elsewhere_with_the_port_of_a_listener_of_ours_is_nobody(
    by_proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sock_diag(7) answers the listener when it is asked for a connection that is not there."""
    if by_proc:
        monkeypatch.setattr(sockets, "_ask_kernel", refuse)
    with closing(socket.create_server(("0.0.0.0", 0))) as listener:
        port = listener.getsockname()[1]
        for listening in (Address("0.0.0.0", port), Address("192.0.2.1", port), Address("db1.example", port)):
            assert user_of("192.0.2.7", port, listening) is None
            assert user_of("127.0.0.1", port, listening) is None


@pytest.mark.parametrize("by_proc", [False, True])
def test_a_connection_that_is_closed_is_nobodys(by_proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says of what waits for its end that it is root's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if by_proc:
        monkeypatch.setattr(sockets, "_ask_kernel", refuse)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, connected(listener) as (client, server):
        port = client.getsockname()[1]
        assert user_of("127.0.0.1", port, address_of(listener)) is not None
        client.close()
        assert user_of("127.0.0.1", port, address_of(listener)) is None  # FIN_WAIT
        server.close()
        assert user_of("127.0.0.1", port, address_of(listener)) is None  # TIME_WAIT
        assert only_owner(ipaddress.ip_address("127.0.0.1"), port, listener.getsockname()[1]) is None


@as_root
def test_a_strangers_connection_from_the_port_of_one_of_ours_is_nobodys() -> None:
    """Of a listener on all addresses one does not know to which of them a peer has connected."""
    with closing(socket.create_server(("0.0.0.0", 0))) as listener, connected(listener) as (client, _):
        port, listening = client.getsockname()[1], address_of(listener)
        assert user_of("127.0.0.1", port, listening) == os.geteuid()
        with closing(socket.socket()) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            os.fchown(other.fileno(), STRANGER, STRANGER)  # as if that user had made it
            other.connect(("127.0.0.3", listening.port))
            with closing(listener.accept()[0]):
                assert user_of("127.0.0.1", port, listening) is None


def test_an_ipv4_connection_of_an_ipv6_socket_is_known() -> None:
    serving = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with closing(serving) as listener, closing(socket.socket(socket.AF_INET6)) as client:
        client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        with closing(listener.accept()[0]):
            assert user_of("127.0.0.1", client.getsockname()[1], address_of(listener)) == os.geteuid()


def test_in_a_user_namespace_the_user_that_stands_for_all_others_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_has_all_users", lambda: False)
    monkeypatch.setattr(sockets, "_ask_kernel", lambda *_: sockets._Socket(1, STRANGER, 4711))
    assert user_of("127.0.0.1", 4711, Address("127.0.0.1", 7420)) is None


def test_who_listens_on_all_addresses_listens_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_ask_kernel", refuse)
    for host, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
        with closing(socket.create_server((host, 0), family=family)) as listener:
            assert listener_user(ipaddress.ip_address("127.0.0.1"), listener.getsockname()[1]) == os.geteuid()


@as_root
def test_who_has_answered_is_known_though_the_listener_is_gone() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = address_of(listener)
        with connected(listener) as (_, server):
            listener.close()
            check_neighbour(address)  # nobody listens: that tells nothing
            check_connected(address)
            os.fchown(server.fileno(), STRANGER, STRANGER)  # as if that user had accepted it
            with pytest.raises(Unavailable):
                check_connected(address)
        with pytest.raises(Unavailable):
            check_connected(address)
    check_connected(Address("192.0.2.7", 7420))


def test_what_stays_on_this_machine_goes_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as proxy, closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        proxy.settimeout(0.5)
        with open_channel(address_of(free), Tls()) as channel:
            stub: Any = rpc.ReplicationStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.Status(pb.StatusRequest(), timeout=1.0)
        with pytest.raises(TimeoutError):
            proxy.accept()


@pytest.mark.parametrize("text", ["unix:7420", "unix-abstract:7420", "VSOCK:1", "ipv4:80", "dns:53"])
def test_an_address_is_none_of_grpcs_other_kinds(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(text)
