"""A switchover, asked for from outside. Bounded waits, gRPC's errors as walcast's."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from walcast import wire
from walcast.access.credentials import Credentials
from walcast.errors import ConfigError, Unavailable
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc

SWITCHOVER_S = 90.0


@dataclass(frozen=True, slots=True)
class Switched:
    """What came of it: `pause_ms` is how long the old primary held writers."""

    primary: str
    term: int
    position: Position
    pause_ms: float


def switch_over(address: wire.Address, to: str, tls: wire.Tls, *, name: str = "", timeout_s: float = 5.0) -> Switched:
    """Unavailable when nothing happened, with why."""
    request = pb.SwitchoverRequest(database=name, to=to, timeout_ms=int(timeout_s * 1000))
    credentials = Credentials.of(tls)
    with wire.open_channel(address, credentials) as channel:
        try:
            reply: pb.SwitchoverReply = rpc.ReplicationStub(channel).Switchover(request, timeout=SWITCHOVER_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ConfigError(f"{address}: not a walcast primary") from error
            failure = credentials.failure(address, error.code().name, error.details(), SWITCHOVER_S)
            raise Unavailable(failure) from error
    if reply.HasField("refusal"):
        raise Unavailable(f"{address}: {reply.refusal.detail}")
    position = wire.position_of(reply.position)
    return Switched(reply.primary, reply.term, position, round(reply.pause_us / 1000, 1))
