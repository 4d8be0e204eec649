"""Another user of the machine at a node's port: `stranger.py HOST:PORT DATABASE`; prints what came of each call.

Started as root. Everything is imported before the rights are given up: the interpreter may lie in a private folder.
"""

from __future__ import annotations

import encodings.idna
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from walcast import wire
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc

assert encodings.idna
NOBODY = 65534
CALL_S = 10.0


def outcome(call: Callable[[], Any]) -> str:
    """The status code, or what the first answer was."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]  # every error of a call has one
    if "kind" not in answer.DESCRIPTOR.oneofs_by_name:
        return "OK"
    return str(answer.WhichOneof("kind"))


def held(first: Any) -> Iterator[Any]:
    """One message, and the stream stays open for the answer."""
    yield first


def main() -> None:
    address, database = sys.argv[1:]
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    version = wire.PROTOCOL_VERSION
    hello = pb.Hello(protocol=version, database=database, follower_id="edge-1", address="127.0.0.1:1", candidate=True)
    copying = pb.CopyHello(protocol=version, database=database)
    taking = pb.StepDownRequest(database=database, term=2, primary="127.0.0.1:1")
    with grpc.insecure_channel(address, options=wire.OPTIONS) as channel:
        stub: Any = rpc.ReplicationStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        calls: dict[str, Callable[[], Any]] = {
            "Stream": lambda: next(stub.Stream(held(pb.FollowerMessage(hello=hello)), timeout=CALL_S)),
            "Copy": lambda: next(stub.Copy(held(pb.CopyRequest(hello=copying)), timeout=CALL_S)),
            "Status": lambda: stub.Status(pb.StatusRequest(), timeout=CALL_S),
            "Barrier": lambda: stub.Barrier(pb.BarrierRequest(database=database), timeout=CALL_S),
            "Switchover": lambda: stub.Switchover(pb.SwitchoverRequest(database=database, to="x"), timeout=CALL_S),
            "StepDown": lambda: stub.StepDown(taking, timeout=CALL_S),
            "Health": lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S),
        }
        print(json.dumps({method: outcome(call) for method, call in calls.items()}))


main()
