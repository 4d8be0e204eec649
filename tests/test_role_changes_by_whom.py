"""Who may ask a node to change its role: reading is for more than that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from primary.publisher import Publisher
from walcast.rpc import replication_pb2 as pb


class Context:
    """What gRPC knows of a caller."""

    def __init__(self, peer: str, *, tls: bool, identity: bytes | None = None) -> None:
        self._peer, self._tls, self._identity = peer, tls, identity

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, Any]:
        return {"transport_security_type": [b"ssl" if self._tls else b"insecure"]}

    def peer_identities(self) -> list[bytes] | None:
        return [self._identity] if self._identity else None


FAR = "ipv4:10.0.0.9:4711"


@pytest.mark.parametrize(
    ("context", "may"),
    [
        (Context("ipv4:127.0.0.1:4711", tls=False), True),
        (Context("ipv4:127.0.0.1:4711", tls=True), True),
        (Context("ipv6:%5B::1%5D:4711", tls=True), True),
        (Context(FAR, tls=True, identity=b"edge-2"), True),
        (Context(FAR, tls=False), True),  # only where --insecure was asked for
        (Context(FAR, tls=True), False),
    ],
)
def test_only_whoever_is_near_or_known_may(context: Context, may: bool) -> None:
    publisher = Publisher({}, lambda: None)
    calls = [
        (publisher.Switchover, pb.SwitchoverRequest(database="app", to="x")),
        (publisher.StepDown, pb.StepDownRequest(database="app", term=9, primary="10.0.0.9:1")),
    ]
    for call, request in calls:
        reply = asyncio.run(call(request, context))  # type: ignore[arg-type]
        refused = "show a certificate" in reply.refusal.detail
        assert refused is not may
