"""What the decisions go by: the state of a node, what happens to it, and what it is to do. Values, no logic.

`decisions` says what follows from what.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from walcast_node.failover.claims import Claim
from walcast_node.failover.lease import Lease


class Role(Enum):
    """What the node is to be."""

    FOLLOWER = "follower"
    PRIMARY = "primary"
    FENCED = "fenced"  # it holds the lease as far as it knows, and cannot renew it


@dataclass(frozen=True, slots=True)
class Node:
    """This node. `run` is another one in each life of the process, so that nonces never repeat.

    `auto`: it takes over by itself; with `priority` among those that have equally much.
    """

    id: str
    address: str
    run: str
    lease_s: float
    auto: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """A swap that was sent."""

    lease: Lease
    sent_s: float
    from_s: float  # no tenure by it begins before


@dataclass(frozen=True, slots=True)
class State:
    """What the node knows. `term` is that of its history; `seen_s` when `lease`, `version` was first seen.

    `until_s` ends the tenure, and it does not begin before `from_s`, which goes with a `lease` of this node's own.
    `sent` are swaps whose outcome is open.
    """

    node: Node
    role: Role = Role.FOLLOWER
    term: int = 0
    txid: int = 0
    lease: Lease | None = None
    version: str | None = None
    seen_s: float = -math.inf
    from_s: float = -math.inf
    until_s: float = -math.inf
    due_s: float = -math.inf
    sent: tuple[Attempt, ...] = ()
    busy: bool = False
    fresh: bool = False  # `lease` is what the store answered last, and nothing was left open since
    streaming: bool = False
    fit: bool = False
    claimed: str = ""  # the nonce for which the claim stands
    place: int | None = None  # in line for it
    lined_s: float = -math.inf  # since then
    starting: bool = False  # to be primary, if nobody else is
    first: bool = False  # no lease was ever known here
    wanted: bool = False  # somebody asked for this node's promotion
    followers: tuple[str, ...] = ()  # who takes over by himself and has a stream of this node
    hand_to: tuple[str, str] | None = None  # id and address of the node that is to have the lease
    handing: bool = False  # a swap that gives it away was sent, and may be made yet
    refused: bool = False  # the last swap was
    count: int = 0

    @property
    def holds(self) -> bool:
        """Is the newest lease seen this node's own?"""
        return self.lease is not None and self.lease.holder == self.node.id

    def may_act(self, now_s: float) -> bool:
        """May it publish and archive now?"""
        return self.role is Role.PRIMARY and not self.handing and self.from_s <= now_s < self.until_s

    @property
    def tick_s(self) -> float:
        """When to send the next Tick, if nothing else happens."""
        ends = self.until_s if self.role is Role.PRIMARY else math.inf
        return min(ends, math.inf if self.busy else self.due_s)


# Events


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to Read: the lease and its version, None where there is none."""

    now_s: float
    lease: Lease | None
    version: str | None


@dataclass(frozen=True, slots=True)
class Swapped:
    """The swap was made."""

    now_s: float
    nonce: str
    version: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The lease is another one by now: the swap was not made, unless by a repeated request of ours."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The store did not answer: a swap may have been made, or may be made later."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Claims:
    """The answer to ReadClaims, or to MakeClaim, which has none."""

    now_s: float
    claims: tuple[Claim, ...] = ()
    made: Claim | None = None


@dataclass(frozen=True, slots=True)
class Following:
    """How it goes with the stream: whether there is one, how far it came, whether this node is fit to take over."""

    now_s: float
    streaming: bool
    term: int
    txid: int
    fit: bool


@dataclass(frozen=True, slots=True)
class Followed:
    """These followers, by id, have a stream of this node, and take over by themselves."""

    now_s: float
    followers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operator wants this node to be primary, whatever the one that is may have."""

    now_s: float


@dataclass(frozen=True, slots=True)
class HandOver:
    """The holder, drained and with writers held, gives the lease away."""

    now_s: float
    to: str
    address: str


Event: TypeAlias = Tick | Found | Swapped | Refused | Failed | Claims | Following | Followed | Wanted | HandOver


# Actions


@dataclass(frozen=True, slots=True)
class Read:
    """Ask the store for the lease."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Write `lease` over `version`, None: where there is none."""

    lease: Lease
    version: str | None


@dataclass(frozen=True, slots=True)
class MakeClaim:
    """Catch up from the archive, then write a claim for this nonce."""

    nonce: str


@dataclass(frozen=True, slots=True)
class ReadClaims:
    """List the claims."""


@dataclass(frozen=True, slots=True)
class Promote:
    """Be primary of `term`; publish and archive only while `may_act`."""

    term: int


@dataclass(frozen=True, slots=True)
class Fence:
    """Hold writers: the tenure is over."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The lease is renewed: let writers go on."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Another node is primary: follow it. A primary is deposed by that."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The lease is the other node's."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class NotHandedOver:
    """The lease is still ours: nothing happened."""


Action: TypeAlias = (
    Read | Swap | MakeClaim | ReadClaims | Promote | Fence | Resume | Follow | HandedOver | NotHandedOver
)
Step: TypeAlias = tuple[State, tuple[Action, ...]]
