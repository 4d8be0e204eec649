"""Proof that another node is the primary: asked at the address that it names, over this node's own credentials.

A word alone moves nobody. Whoever says that there is a primary of a higher term must name one that this node can reach
as it would follow it, and that answers as the primary of that term of this database.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from walcast.errors import WalcastError
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.terms import PRIMARY
from walcast.wire import Address
from walcast_primary.publish.served_database import Refused, Served

if TYPE_CHECKING:
    from walcast_node.failover.member import Member

ASK_S = 5.0


async def check_primary(member: Member, served: Served, address: Address, term: int) -> None:
    """Refused unless the node at `address` is the primary of `term` of the database that is `served` here."""
    try:
        reply = await asyncio.to_thread(_ask, member, address)
    except WalcastError as error:  # no credentials for that address, or another user of this machine answers there
        raise _refused(str(error)) from error
    except grpc.RpcError as error:
        failure = member.host.credentials.failure(address, error.code().name, error.details(), ASK_S)
        raise _refused(f"no proof from the node at {failure}") from error
    for one in reply.databases:
        if one.role == PRIMARY and one.term >= term and _is_same(one, served):
            return
    found = ", ".join(f"{one.name}: {one.role} of term {one.term}" for one in reply.databases[:10]) or "none"
    raise _refused(f"the node at {address} is not the primary of term {term} of this database; it has: {found}")


def _ask(member: Member, address: Address) -> pb.StatusReply:
    with member.channel(address) as channel:
        reply: pb.StatusReply = rpc.ReplicationStub(channel).Status(pb.StatusRequest(), timeout=ASK_S)
        return reply


def _is_same(theirs: pb.DatabaseStatus, served: Served) -> bool:
    mine = served.database.id
    return theirs.database_id == mine if mine and theirs.database_id else theirs.name == served.database.name


def _refused(why: str) -> Refused:
    return Refused(pb.REFUSAL_KIND_UNSPECIFIED, f"{why}; nothing happened")
