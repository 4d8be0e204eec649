"""How much of the primary one identity may take: whoever takes without end is refused, and all others are served.

Four things are counted: open calls, copies, barriers that wait, and the time for which writers are held. Of each an
identity may have a share, and of calls and copies some places are kept for members of the set: a crowd of readers never
keeps a member out. `who` names the identity. A member's share is half of the whole, so that one of them keeps no other
out; whoever is `trusted`, as the user of the database, has no share. Those who may do nothing have a few places of
their own until they are told so.

Used in the event loop only.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from walcast.access.sockets import IP, parse_ip
from walcast.rpc import replication_pb2 as pb
from walcast_primary.publish.served_database import Refused

HOLD_WINDOW_S = 60.0
HOLD_MOST_S = 10.0  # within any such window
HOLD_LEAST_S = 0.1
HOLD_DEFAULT_S = 5.0  # of a call that does not say for how long
HOLDERS_MOST = 1000  # the ones that were used longest ago are forgotten, once their window is over


@dataclass(frozen=True, slots=True)
class Limits:
    """`all_of` how many there are in all, `each` for one identity, `kept` of them for members."""

    what: str
    all_of: int
    each: int
    kept: int = 0


CALLS = Limits("streams and copies", all_of=1000, each=100, kept=100)
COPIES = Limits("copies", all_of=8, each=2, kept=2)
STRANGERS = Limits("calls of those who may do nothing", all_of=50, each=50)
BARRIERS = Limits("barriers that wait", all_of=1000, each=64, kept=100)


class Places:
    """Of one kind: who has how many of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: Counter[str] = Counter()
        self._strangers = 0

    @property
    def taken(self) -> int:
        """How many are."""
        return self._of.total()

    def take(self, who: str, *, member: bool = False, more: int = 0, trusted: bool = False) -> ExitStack:
        """One place, until what is returned is closed; Refused where there is none for this identity. `more`: so many
        beside its share, where it has reason to need them."""
        self._check(who, member, math.inf if trusted else more)
        self._of[who] += 1
        self._strangers += not member
        place = ExitStack()
        place.callback(self._give_back, who, member)
        return place

    def _give_back(self, who: str, member: bool) -> None:
        self._of[who] -= 1
        self._strangers -= not member
        if not self._of[who]:
            del self._of[who]

    def _check(self, who: str, member: bool, more: float) -> None:
        limits = self._limits
        if self.taken >= limits.all_of or (not member and self._strangers >= limits.all_of - limits.kept):
            raise Refused(pb.REFUSAL_KIND_TOO_MANY, f"too many {limits.what}: {self.taken} of {limits.all_of}")
        share = max(limits.each, limits.all_of // 2) if member else limits.each
        if self._of[who] >= share + more:
            raise Refused(pb.REFUSAL_KIND_TOO_MANY, f"{who} has {self._of[who]} {limits.what} already, its share")


@dataclass(slots=True)
class Pace:
    """No more than so many a second, counted in whole seconds."""

    per_s: int
    clock: Callable[[], float] = time.monotonic
    _since_s: float = 0.0
    _count: int = 0

    def wait_s(self) -> float:
        """Before one more: how long to wait; 0 for not at all."""
        now_s = self.clock()
        if now_s - self._since_s >= 1.0:
            self._since_s, self._count = now_s, 0
        self._count += 1
        return self._since_s + 1.0 - now_s if self._count > self.per_s else 0.0


@dataclass(slots=True)
class _Hold:
    began_s: float
    seconds: float


@dataclass(slots=True)
class HoldBudget:
    """For how long each identity has held an app's writers, and which databases' role is being changed."""

    clock: Callable[[], float] = time.monotonic
    _changing: set[str] = field(default_factory=set)
    _held: OrderedDict[str, deque[_Hold]] = field(default_factory=OrderedDict)

    @contextmanager
    def hold(self, who: str, database: str, wanted_s: float, *, trusted: bool = False) -> Iterator[float]:
        """For a switchover: the block may hold writers for so many seconds, no more than `wanted_s`. Refused while
        another one of this database is under way, and when those of the identity took long enough already. Of whoever
        is `trusted`, because the database is his, only the first is asked."""
        if database in self._changing:
            raise Refused(pb.REFUSAL_KIND_TOO_MANY, f"the role of {database!r} is being changed already")
        left_s = wanted_s if trusted else HOLD_MOST_S - self._spent_s(who)
        if left_s < HOLD_LEAST_S:
            detail = f"what {who} asked for took {HOLD_MOST_S:g} s within {HOLD_WINDOW_S:g} s; try again in a minute"
            raise Refused(pb.REFUSAL_KIND_TOO_MANY, detail)
        granted_s, began_s = min(wanted_s, left_s), self.clock()
        hold = _Hold(began_s, granted_s)  # counted at once: another call may come meanwhile
        self._held.setdefault(who, deque()).append(hold)
        self._held.move_to_end(who)
        self._changing.add(database)
        try:
            yield granted_s
        finally:
            self._changing.discard(database)
            hold.seconds = min(granted_s, self.clock() - began_s)

    def _spent_s(self, who: str) -> float:
        since_s = self.clock() - HOLD_WINDOW_S
        while len(self._held) > HOLDERS_MOST and self._is_over(next(iter(self._held.values())), since_s):
            self._held.popitem(last=False)
        held = self._held.get(who, deque())
        while held and held[0].began_s + held[0].seconds <= since_s:
            held.popleft()
        return sum(hold.seconds for hold in held)

    @staticmethod
    def _is_over(held: deque[_Hold], since_s: float) -> bool:
        return not held or held[-1].began_s + held[-1].seconds <= since_s


class Quotas:
    """Those of one server."""

    def __init__(self) -> None:
        self.calls = Places(CALLS)
        self.strangers = Places(STRANGERS)
        self.copies = Places(COPIES)
        self.barriers = Places(BARRIERS)
        self.holds = HoldBudget()


def who_of(peer: str) -> str:
    """gRPC's name of a peer without its port, which is another one with each connection; of an IPv6 address the network
    of 64 bits, all of which one host can have."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind or "unknown"
    host = rest.rpartition(":")[0] or rest
    try:
        return network_of(parse_ip(unquote(host)))
    except ValueError:
        return host


def network_of(ip: IP) -> str:
    """Whom a peer at this address is counted as."""
    return str(ip) if ip.version == 4 else f"[{ipaddress.ip_network((ip, 64), strict=False).network_address}]"
