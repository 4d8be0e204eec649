"""Telling the primary before that it is not the one any longer, in sets without a lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import grpc

from walcast.rarely import Rarely
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.shortage import reason
from walcast.terms import PRIMARY
from walcast.wire import Address, position_message
from walcast_primary.publish.served_database import Refused

if TYPE_CHECKING:
    from walcast_node.failover.member import Member

log = logging.getLogger("walcast.failover")

LOOK_S = 0.1
CALL_S = 5.0
PAUSE_FIRST_S = 0.5
PAUSE_MOST_S = 30.0


async def tell(member: Member, addresses: Sequence[Address], term: int, database: str) -> None:
    """Once this node is the primary of `term`: have the one before make way, as soon as it can be reached. It is told
    where the term began, so that a stranger at that address does not take it for its own."""
    while not (member.standing.role == PRIMARY and member.standing.term >= term):
        await asyncio.sleep(LOOK_S)
    begun = next((begun for begun in member.standing.history if begun.term == term), None)
    request = pb.StepDownRequest(database=database, term=term, primary=str(member.address))
    if begun is not None:
        request.position.CopyFrom(position_message(begun.start, term))
    waiting = [address for address in dict.fromkeys(addresses) if address != member.address]
    refused: dict[Address, str] = {}
    rarely = Rarely(log)
    pause_s = PAUSE_FIRST_S
    while waiting and member.standing.term <= term:
        for address in list(waiting):
            with member.channel(address) as channel:
                call = partial(rpc.ReplicationStub(channel).StepDown, request, timeout=CALL_S)
                try:
                    reply = await asyncio.to_thread(call)
                except Exception as error:  # noqa: BLE001 - gRPC's, whichever: tried again
                    why = {"address": str(address), "error": _words(member, address, error), "term": term}
                    rarely.log(logging.INFO, "a node cannot be told of the new primary yet, trying again", address, why)
                    continue
            newer = reply.refusal.kind == pb.REFUSAL_KIND_OLDER_TERM and reply.term > term
            if newer and await _make_way(member, reply, address):
                return
            if reply.refusal.kind == pb.REFUSAL_KIND_NOT_PRIMARY or not reply.HasField("refusal"):
                waiting.remove(address)
            elif refused.get(address) != reply.refusal.detail:
                refused[address] = reply.refusal.detail
                why = {"address": str(address), "error": reply.refusal.detail}
                log.error("another node does not make way: there may be two primaries", extra=why)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_MOST_S)


def _words(member: Member, address: Address, error: Exception) -> str:
    if isinstance(error, grpc.RpcError):
        return member.host.credentials.failure(address, error.code().name, error.details(), CALL_S)
    return reason(error)


async def _make_way(member: Member, reply: pb.StepDownReply, address: Address) -> bool:
    """To one that is the primary of a newer term, as this node heard when it told that one of its own."""
    request = pb.StepDownRequest(term=reply.term, primary=str(address), position=reply.position)
    try:
        await member.step_down(request)
    except Refused as refused:
        log.debug("does not make way", extra={"address": str(address), "error": str(refused)})
        return False
    return True
