"""Crowds of connections: gRPC takes so many, and hangs up on whoever comes then, be it a member of the set.

So before that many are there, those go that have no call by anybody who may do something: of whoever has the most, as
the kernel tells the user of a connection on this machine, and the network its address elsewhere. gRPC has no means
for that; a connection is ended by `shutdown(2)`, as if its other end had done it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from walcast.access.sockets import IP, Connection, accepted_connections, socket_owner
from walcast.rarely import Rarely
from walcast_primary.publish.quotas import network_of

LOOK_S = 5.0
CROWDED_LOOK_S = 0.1
CROWDED = 0.75  # of as many as gRPC takes
CALM = 0.5  # so many may stay then

log = logging.getLogger("walcast.primary")

Peer = tuple[IP, int]


@dataclass(frozen=True, slots=True)
class Caller:
    """One connection, and whose it is."""

    connection: Connection
    of: str
    busy: bool


async def keep_room(port: int, most: int, busy: Callable[[], Collection[Peer]]) -> None:
    """At `port`, where gRPC takes `most` connections, for ever. `busy`: the peers that have a call they may make."""
    rarely = Rarely(log)
    while True:
        ended = 0
        try:
            ended = await asyncio.to_thread(make_room, port, most, set(busy()))
        except OSError as error:
            rarely.log(logging.WARNING, "cannot count connections", "count", {"error": str(error)})
        if ended:
            rarely.log(logging.WARNING, "a crowd of connections", "crowd", {"ended": ended, "most": most})
        await asyncio.sleep(CROWDED_LOOK_S if ended else LOOK_S)


def make_room(port: int, most: int, busy: Collection[Peer]) -> int:
    """End connections where there are too many: how many were ended."""
    connections = accepted_connections(port)
    if len(connections) < most * CROWDED:
        return 0
    callers = [Caller(one, _whose(one), (one.there, one.there_port) in busy) for one in connections]
    dropped = whom_to_drop(callers, int(most * CALM), f"user:{os.geteuid()}")
    return sum(_end(one.connection) for one in dropped)


def whom_to_drop(callers: Iterable[Caller], calm: int, ours: str) -> list[Caller]:
    """So that no more than `calm` stay, as far as possible: of whoever has the most that are not busy, until all have
    the same; of our own user none."""
    callers = list(callers)
    idle: dict[str, list[Caller]] = defaultdict(list)
    for one in callers:
        if not one.busy and one.of != ours:
            idle[one.of].append(one)
    counts = Counter({of: len(theirs) for of, theirs in idle.items()})
    dropped: list[Caller] = []
    while len(callers) - len(dropped) > calm and (most := counts.most_common(1)) and most[0][1]:
        dropped.append(idle[most[0][0]].pop())
        counts[most[0][0]] -= 1
    return dropped


def _whose(one: Connection) -> str:
    uid = socket_owner(one.there, one.there_port, one.here, one.here_port)
    return network_of(one.there) if uid is None else f"user:{uid}"


def _end(one: Connection) -> bool:
    try:
        fd = os.dup(one.fd)  # which nobody else closes meanwhile
    except OSError:
        return False
    with socket.socket(fileno=fd) as end:
        try:
            if end.getpeername()[1] != one.there_port or end.getsockname()[1] != one.here_port:
                return False  # another one by now
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
    return True
