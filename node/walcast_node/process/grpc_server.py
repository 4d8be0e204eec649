"""The gRPC server: replication and health, and reflection if it is asked for, on an address."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from walcast import wire
from walcast.access.credentials import Credentials
from walcast.errors import ConfigError
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast_node.process.grpc_health import Health
from walcast_node.process.grpc_unread import Unread
from walcast_node.process.listen_errors import why_not

MAX_REQUEST_BYTES = 64 << 10  # gRPC has one limit for all methods; what is bigger, page checksums, comes in pieces
LIMITS = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.server_handshake_timeout_ms", 5_000),  # TLS and HTTP/2 together; 120 s unless said
    ("grpc.max_connection_idle_ms", 600_000),  # without a call; whoever needs another one connects again
    ("grpc.max_concurrent_streams", 1_000),  # calls on one connection
]

SERVICE = pb.DESCRIPTOR.services_by_name["Replication"].full_name


def listen(
    replication: rpc.ReplicationServicer,
    address: wire.Address,
    tls: wire.Tls | Credentials,
    *,
    connections: int,
    reflect: bool = False,
) -> tuple[grpc.aio.Server, Any, wire.Address]:
    """The server, still to be started; its health service; where it listens. ConfigError when it cannot there.

    Of more than `connections` at a time gRPC closes the newest as they come, before a byte is read; those that are
    silent until the handshake is over do not stay for long. `reflect`: tell anybody what may be called.
    """
    common = [option for option in wire.OPTIONS if option[0] not in dict(LIMITS)]
    options = [*common, *LIMITS, ("grpc.max_allowed_incoming_connections", connections)]
    server = grpc.aio.server(interceptors=[Unread()], options=options)
    rpc.add_ReplicationServicer_to_server(replication, server)
    healthy = Health()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    if reflect:
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    credentials = Credentials.of(tls).server(address)
    try:
        port = (
            server.add_secure_port(str(address), credentials) if credentials else server.add_insecure_port(str(address))
        )
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"cannot listen on {address}: {why_not(address)}")
    return server, healthy, wire.Address(address.host, port)
