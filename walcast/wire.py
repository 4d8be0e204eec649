"""What both ends of the stream agree on beside the messages: the protocol version, channel settings, credentials."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from walcast.errors import ConfigError
from walcast.position import Position
from walcast.redaction import shown_url
from walcast.rpc import replication_pb2 as pb
from walcast.terms import TermStart

if TYPE_CHECKING:
    import grpc

    from walcast.access.credentials import Credentials

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 8 << 20
MAX_RECEIVE = "grpc.max_receive_message_length"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?\]")
_PORT = re.compile(r"[0-9]{1,5}")
TEXT_SHOWN = 80
_SCHEMES = frozenset(
    ("unix", "unix-abstract", "vsock", "ipv4", "ipv6", "dns", "xds", "google-c2p")
)  # of gRPC's targets
LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1", "[::1]"])

# A peer that vanished without a word is found out in some twenty seconds; a stream may be idle for ever.
OPTIONS: list[tuple[str, Any]] = [
    (MAX_RECEIVE, MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]


def position_message(position: Position, term: int) -> pb.Position:
    """As a message."""
    return pb.Position(txid=position.txid, checksum=position.checksum, term=term)


def position_of(message: pb.Position) -> Position:
    """From a message."""
    return Position(message.txid, message.checksum)


def history_message(history: Iterable[TermStart]) -> list[pb.TermStart]:
    """As messages."""
    return [
        pb.TermStart(term=begun.term, start=position_message(begun.start, 0), first_txid=begun.first_txid)
        for begun in history
    ]


def history_of(messages: Iterable[pb.TermStart]) -> tuple[TermStart, ...]:
    """From messages."""
    return tuple(TermStart(m.term, position_of(m.start), m.first_txid) for m in messages)


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """ConfigError for anything but HOST:PORT; an IPv6 host stands in brackets."""
        if "@" in text:  # not quoted: it may hold a password
            raise ConfigError("an address is HOST:PORT, without a user or a password")
        host, colon, port = text.rpartition(":")
        if not colon or not host or not _PORT.fullmatch(port) or int(port) > 65535:
            raise ConfigError(f"{shown_url(text[:TEXT_SHOWN])} is not HOST:PORT, as in 127.0.0.1:7420")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ConfigError(f"{shown_url(text[:TEXT_SHOWN])}: an IPv6 address stands in brackets, as in [::1]:7420")
        if host.lower() in _SCHEMES:
            raise ConfigError(f"{host} is no host's name here: gRPC takes {host}:… for another kind of address")
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{shown_url(text[:TEXT_SHOWN])} is not a host's name or address, and a port")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def options(self) -> list[tuple[str, Any]]:
        """For a channel to it. What stays on this machine never goes through the proxy that the environment names."""
        return [*OPTIONS, ("grpc.enable_http_proxy", 0)] if self.is_loopback else OPTIONS

    @property
    def is_loopback(self) -> bool:
        """Does it stay on this machine?"""
        if self.host in LOOPBACK:
            return True
        try:  # a name that only begins like such an address is somebody else's
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: `cert` and `key` to show the other side, and whom to trust there.

    `ca` is trusted on every other side. In its place, `peer_ca` is trusted for nodes and `client_ca` for apps and
    people. Who connects must show a certificate where any of them is given, unless `client_auth` is false: then tokens
    tell who it is. `token_file` has the token to show and the hashes of those to accept. ConfigError for what does not
    go together.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False
    peer_ca: Path | None = None
    client_ca: Path | None = None
    token_file: Path | None = None
    client_auth: bool = True

    def __post_init__(self) -> None:
        if self.insecure and any((self.ca, self.cert, self.key, self.peer_ca, self.client_ca)):
            raise ConfigError("--insecure is plain text and --tls-… are for TLS: give one or the other")
        if self.ca and (self.peer_ca or self.client_ca):
            raise ConfigError(
                "--tls-ca is trusted for peers and for clients: give it, or --tls-peer-ca and --tls-client-ca"
            )
        if self.client_ca and not self.client_auth:
            raise ConfigError(
                "--tls-client-ca is for the certificates of clients, and --tls-client-auth none asks for none"
            )

    @property
    def servers_ca(self) -> Path | None:
        """Whom to trust where this process connects to."""
        return self.ca or self.peer_ca

    @property
    def asks_certificates(self) -> bool:
        """Must who connects to this process show a certificate?"""
        return self.client_auth and bool(self.ca or self.peer_ca or self.client_ca)

    def is_encrypted_server(self, address: Address) -> bool:
        """Does a server at `address` speak TLS? ConfigError for plain text beyond loopback that nobody asked for."""
        if self.cert is None and self.key is None:
            if not address.is_loopback and not self.insecure:
                raise ConfigError(
                    f"listening on {address} lets others read the data: give --tls DIR (walcast certs), or --insecure"
                )
            return False
        if self.cert is None or self.key is None:
            raise ConfigError("--tls-cert and --tls-key go together")
        return True

    def is_encrypted_to(self, address: Address) -> bool:
        """Is TLS spoken with the node at `address`? ConfigError as above."""
        if self.servers_ca is None and self.cert is None:
            if not address.is_loopback and not self.insecure:
                raise ConfigError(f"{address} is not on this machine: give --tls DIR (walcast certs), or --insecure")
            return False
        return True

    def server(self, address: Address) -> grpc.ServerCredentials | None:
        """As `Credentials.server`."""
        from walcast.access.credentials import Credentials

        return Credentials(self).server(address)

    def channel(self, address: Address) -> grpc.ChannelCredentials | None:
        """As `Credentials.channel`."""
        from walcast.access.credentials import Credentials

        return Credentials(self).channel(address)


def open_channel(address: Address, credentials: Tls | Credentials) -> grpc.Channel:
    """To a node, for a call or two, which show the token of `credentials` if it has one; its own context manager.
    Unavailable when another user of this machine answers there in plain text."""
    import grpc

    from walcast.access.credentials import Credentials, shown_in_calls

    credentials = Credentials.of(credentials)
    encrypted = credentials.channel(address)
    credentials.check_neighbour(address)
    if encrypted is None:
        channel = grpc.insecure_channel(str(address), options=address.options)
    else:
        channel = grpc.secure_channel(str(address), encrypted, options=address.options)
    return shown_in_calls(channel, credentials, address)
