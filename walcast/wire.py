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
from walcast.rpc import replication_pb2 as pb
from walcast.terms import TermStart

if TYPE_CHECKING:
    import grpc

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 8 << 20
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?\]")
_PORT = re.compile(r"[0-9]{1,5}")
_SHOWN_CHARS = 80
LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1", "[::1]"])

# A peer that vanished without a word is found out in some twenty seconds; a stream may be idle for ever.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
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
        host, colon, port = text.rpartition(":")
        if not colon or not host or not _PORT.fullmatch(port) or int(port) > 65535:
            raise ConfigError(f"{text[:_SHOWN_CHARS]!r} is not HOST:PORT")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ConfigError(f"{text[:_SHOWN_CHARS]!r}: an IPv6 address stands in brackets, as in [::1]:7420")
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{text[:_SHOWN_CHARS]!r}: {host[:_SHOWN_CHARS]!r} is not a host's name or address")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

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
    """PEM files: `ca` to trust the other side by, `cert` and `key` to show it."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False

    def server(self, address: Address) -> grpc.ServerCredentials | None:
        """None: plain text, which beyond loopback must be asked for. With `ca`, followers must show a certificate."""
        if self.cert is None and self.key is None:
            if not address.is_loopback and not self.insecure:
                raise ConfigError(
                    f"listening on {address} lets others read the data: give --tls-cert and --tls-key, or --insecure"
                )
            return None
        if self.cert is None or self.key is None:
            raise ConfigError("--tls-cert and --tls-key go together")
        pair = [(_pem(self.key), _pem(self.cert))]
        ca = _pem(self.ca) if self.ca else None
        import grpc

        return grpc.ssl_server_credentials(pair, root_certificates=ca, require_client_auth=ca is not None)

    def channel(self, address: Address) -> grpc.ChannelCredentials | None:
        """None: plain text, which beyond loopback must be asked for."""
        if self.ca is None and self.cert is None:
            if not address.is_loopback and not self.insecure:
                raise ConfigError(
                    f"{address} is not on this machine: give --tls-ca (and --tls-cert, --tls-key), or --insecure"
                )
            return None
        key = _pem(self.key) if self.key else None
        cert = _pem(self.cert) if self.cert else None
        import grpc

        return grpc.ssl_channel_credentials(_pem(self.ca) if self.ca else None, key, cert)


def open_channel(address: Address, tls: Tls) -> grpc.Channel:
    """To a node, for a call or two; its own context manager. Unavailable when another user of this machine answers
    there in plain text."""
    import grpc

    from walcast.access.neighbours import check_neighbour

    credentials = tls.channel(address)
    check_neighbour(address, encrypted=credentials is not None)
    if credentials is None:
        return grpc.insecure_channel(str(address), options=OPTIONS)
    return grpc.secure_channel(str(address), credentials, options=OPTIONS)


def _pem(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{path}: not a PEM file")
    return data
