"""The gRPC server: replication, health, reflection, on an address."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from walcast import wire
from walcast.errors import ConfigError
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc

SERVICE = pb.DESCRIPTOR.services_by_name["Replication"].full_name


def listen(
    replication: rpc.ReplicationServicer, address: wire.Address, tls: wire.Tls
) -> tuple[grpc.aio.Server, Any, wire.Address]:
    """The server, still to be started; its health service; where it listens. ConfigError when it cannot there."""
    server = grpc.aio.server(options=wire.OPTIONS)
    rpc.add_ReplicationServicer_to_server(replication, server)
    healthy = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    credentials = tls.server(address)
    try:
        port = (
            server.add_secure_port(str(address), credentials) if credentials else server.add_insecure_port(str(address))
        )
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"cannot listen on {address}: the port is taken, or the address is not this machine's")
    return server, healthy, wire.Address(address.host, port)
