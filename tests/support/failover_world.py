"""A simulated set of nodes around one store: every clock, request, crash and pause is an event of one timeline.

The world knows the true time; a node knows its own clock only. What must hold is checked exactly, not sampled: between
two events a node acts from `from_s` to `until_s` of its clock, and those spans are compared.
A seed gives the same run again.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from walcast_node.failover import decisions
from walcast_node.failover.claims import Claim
from walcast_node.failover.decisions import (
    Claims,
    Event,
    Failed,
    Fence,
    Follow,
    Following,
    Found,
    HandedOver,
    HandOver,
    MakeClaim,
    Node,
    NotHandedOver,
    Promote,
    Read,
    ReadClaims,
    Refused,
    Resume,
    State,
    Swap,
    Swapped,
    Tick,
    Wanted,
)
from walcast_node.failover.lease import Lease

LEASE_S = 10.0
TIMEOUT_S = 1.5  # after which a node takes a request for failed
WATCH_S = 1.0  # between two looks of a node at its stream
REQUESTS = (Read, Swap, MakeClaim, ReadClaims)


class Violation(AssertionError):
    """What must never be, was."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one request: when the store carries it out (again), and when it answers; seconds after it was sent."""

    applied_s: tuple[float, ...] = (0.05,)
    answered_s: float | None = 0.1  # None: never, the node gives up after TIMEOUT_S


LOST = Fate((), None)
ANSWER_LOST = Fate((0.05,), None)


@dataclass(eq=False)
class Request:
    action: decisions.Action
    result: Callable[[float], Event] | None = None


@dataclass(eq=False)
class Machine:
    """A node: what it knows, what is durable on its disk, and what the world does to it."""

    id: str
    rate: float = 1.0
    offset_s: float = 0.0
    auto: bool = True
    priority: int = 0
    lease_s: float = LEASE_S
    state: State | None = None
    life: int = 0
    primary: bool = False  # durable: its last role
    history: tuple[int, int] = (0, 0)  # durable: term and TXID
    request: Request | None = None
    requests: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    paused: bool = False
    inbox: list[Callable[[float], Event]] = field(default_factory=list)
    cut_off: bool = False
    fit: bool = True
    leader: str = ""
    wanted: bool = False
    doomed: int | None = None  # crashes before it carries out this one of the next step's actions
    interrupted: int | None = None  # crashes after so many steps that asked for something
    doomed_at: int | None = None  # crashes before the actions of this step
    given: list[str] = field(default_factory=list)  # nonces of swaps of the hand-over that is under way
    giving: str = ""  # to whom
    armed: int = 0

    @property
    def runs(self) -> bool:
        return self.state is not None and not self.paused

    def clock(self, true_s: float) -> float:
        return true_s * self.rate + self.offset_s

    def true(self, clock_s: float) -> float:
        return (clock_s - self.offset_s) / self.rate


class World:
    """`fate(machine, request number)` decides what becomes of a request."""

    def __init__(self, *machines: Machine, fate: Callable[[Machine, int], Fate] | None = None) -> None:
        self.machines = {machine.id: machine for machine in machines}
        self.fate = fate or (lambda machine, number: Fate())
        self.now_s = 0.0
        self.lease: Lease | None = None
        self.version = 0
        self.claims: dict[str, Claim] = {}
        self.lies = False  # the store ignores versions
        self.down = False
        self.partitions: set[frozenset[str]] = set()
        self.archive = (0, 0)
        self.owners: dict[int, str] = {}
        self.highest = 0
        self.refused: set[str] = set()  # nonces of hand-overs that were said not to be
        self.made: list[Lease] = []
        self.log: list[str] = []
        self.acted_s: dict[str, float] = {}
        self.epoch = 0  # requests that were sent in an earlier one are lost
        self.steady = False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    # Time

    def at(self, true_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(true_s, self.now_s), next(self._numbers), what))

    def run(self, until_s: float) -> None:
        while self._queue and self._queue[0][0] <= until_s:
            true_s, _, what = heapq.heappop(self._queue)
            self._pass(true_s)
            what()
        self._pass(until_s)

    def transcript(self) -> list[str]:
        """What happened, without what is repeated: looks, renewals, the stream."""
        told, followed = [], {}
        for line in self.log:
            _, node, what = line.split(maxsplit=2)
            again = " → Follow " in what and followed.get(node) == what.rpartition(" → ")[2]
            if " → Follow " in what:
                followed[node] = what.rpartition(" → ")[2]
            if not (
                again or what.startswith(("Tick → Read", "Tick → Swap", "Following")) or what.endswith("→ nothing")
            ):
                told.append(line.strip())
        return told

    def run_on(self, for_s: float) -> None:
        self.run(self.now_s + for_s)

    def _pass(self, to_s: float) -> None:
        """Check who acts between now and `to_s`, while nothing happens."""
        acting = []
        for machine in self.machines.values():
            state = machine.state
            if state is None or machine.paused or state.role is not decisions.Role.PRIMARY or state.handing:
                continue
            begin_s = max(self.now_s, machine.true(state.from_s))
            end_s = min(to_s, machine.true(state.until_s))
            if begin_s + 1e-9 < end_s:
                acting.append((begin_s, end_s, machine, state.term))
        acting.sort(key=lambda act: act[0])
        for (_, end_s, one, _), (begin_s, _, other, _) in itertools.pairwise(acting):
            if begin_s + 1e-9 < end_s:
                self.fail(f"{one.id} and {other.id} act at the same time, at {begin_s:.3f}")
        for begin_s, end_s, machine, term in acting:
            if self.owners.setdefault(term, machine.id) != machine.id:
                self.fail(f"{machine.id} acts in term {term} of {self.owners[term]}")
            if term < self.highest:
                self.fail(f"{machine.id} acts in term {term} after term {self.highest}")
            self.highest = term
            machine.history = max(machine.history, (term, int(end_s * 10)))
            self.archive = max(self.archive, (term, int((end_s - 0.5) * 10)))
            self.acted_s[machine.id] = self.acted_s.get(machine.id, 0.0) + end_s - begin_s
        self.now_s = max(self.now_s, to_s)

    def fail(self, what: str) -> None:
        raise Violation("\n".join([what, *self.log[-60:]]))

    def acts(self, machine: Machine) -> bool:
        return machine.runs and machine.state is not None and machine.state.may_act(machine.clock(self.now_s))

    def acting(self) -> Machine | None:
        return next((machine for machine in self.machines.values() if self.acts(machine)), None)

    # What the world does to nodes

    def boot(self, machine: Machine) -> None:
        """Start a node with what is durable; nothing, if it runs."""
        if machine.state is not None:
            return
        machine.life += 1
        node = Node(
            machine.id,
            f"{machine.id}:1",
            f"{machine.id}{machine.life}",
            machine.lease_s,
            auto=machine.auto,
            priority=machine.priority,
        )
        machine.state = decisions.start(node, term=machine.history[0], primary=machine.primary)
        machine.paused = machine.wanted = False
        machine.request, machine.inbox, machine.leader = None, [], ""
        machine.given, machine.giving = [], ""
        self.note(machine, "starts")
        life = machine.life
        self._step(machine, Tick(machine.clock(self.now_s)))
        self.at(self.now_s + WATCH_S, lambda: self._watch(machine, life))

    def crash(self, machine: Machine, down_s: float = math.inf) -> None:
        if machine.state is None:
            return
        machine.state = machine.doomed = None
        self.note(machine, "crashes")
        if down_s < math.inf:
            epoch = self.epoch  # who is down when all faults are over, stays so
            self.at(self.now_s + down_s, lambda: self.boot(machine) if self.epoch == epoch else None)

    def pause(self, machine: Machine, for_s: float) -> None:
        if machine.runs:
            machine.paused = True
            self.note(machine, "stands still")
            life = machine.life
            self.at(self.now_s + for_s, lambda: self.wake(machine, life))

    def wake(self, machine: Machine, life: int) -> None:
        if machine.life != life or not machine.paused:
            return
        machine.paused = False
        self.note(machine, "goes on")
        late, machine.inbox = machine.inbox, []
        for event in late:
            self._deliver(machine, life, event)
        self._deliver(machine, life, Tick)

    def want(self, machine: Machine) -> None:
        if machine.state is not None:
            machine.wanted = True
            self._deliver(machine, machine.life, Wanted)

    def hand_over(self, to: str) -> None:
        """The holder drained to `to`, as far as this world knows."""
        holder = self.acting()
        if holder is None or holder.giving or to == holder.id:
            return
        holder.giving = to
        self.machines[to].history = max(self.machines[to].history, holder.history)
        self._deliver(holder, holder.life, lambda now_s: HandOver(now_s, to, f"{to}:1"))

    def heal(self) -> None:
        """All faults end. What is under way and was not carried out is lost."""
        self.epoch += 1
        self.down = False
        self.partitions.clear()
        self.fate = lambda machine, number: Fate()
        for machine in self.machines.values():
            machine.cut_off, machine.fit, machine.doomed, machine.interrupted = False, True, None, None
            self.wake(machine, machine.life)
            if machine.request is not None:
                self._deliver(machine, machine.life, Failed)

    # Nodes at work

    def note(self, machine: Machine | None, what: str) -> None:
        self.log.append(f"{self.now_s:7.2f} {machine.id if machine else '-'} {what}")

    def _deliver(self, machine: Machine, life: int, event: Callable[[float], Event]) -> None:
        if machine.life != life or machine.state is None:
            return
        if machine.paused:
            machine.inbox.append(event)
        else:
            self._step(machine, event(machine.clock(self.now_s)))

    def _step(self, machine: Machine, event: Event) -> None:
        before = machine.state
        assert before is not None
        if isinstance(event, (Found, Swapped, Refused, Failed, Claims)):
            machine.request = None
        after, actions = decisions.step(before, event)
        machine.state = after
        machine.steps += bool(actions)
        self.note(machine, _told(event, before, actions))
        self._check_requests(machine, after, actions)
        if actions and machine.doomed_at == machine.steps:
            machine.doomed, machine.doomed_at = 0, None
        for number, action in enumerate(actions):
            if machine.doomed == number:
                self.crash(machine, 2.0)
                return
            self._carry_out(machine, before, after, action)
        if actions and machine.interrupted == machine.steps:
            self.crash(machine, 1.0)
            return
        self._arm(machine, event, after)

    def _check_requests(self, machine: Machine, after: State, actions: tuple[decisions.Action, ...]) -> None:
        count = sum(isinstance(action, REQUESTS) for action in actions)
        if count > 1 or (count and machine.request is not None):
            self.fail(f"{machine.id} asks the store twice at once: {actions}")
        if after.busy != (count == 1 or machine.request is not None):
            self.fail(f"{machine.id} is busy with nothing, or asks without being so")
        if after.role is decisions.Role.PRIMARY and not math.isfinite(after.tick_s):
            self.fail(f"{machine.id} holds the lease and never looks again")

    def _arm(self, machine: Machine, event: Event, state: State) -> None:
        machine.armed += 1
        armed, life = machine.armed, machine.life
        if state.tick_s < event.now_s - 1e-3:
            self.fail(f"{machine.id} does not act on what was due {event.now_s - state.tick_s:.3f} s ago")
        if math.isfinite(state.tick_s):

            def ring() -> None:
                if machine.armed == armed:
                    self._deliver(machine, life, Tick)

            self.at(machine.true(state.tick_s) + 1e-6, ring)

    def _carry_out(self, machine: Machine, before: State, after: State, action: decisions.Action) -> None:
        match action:
            case Promote(term):
                machine.primary = True
                machine.history = max(machine.history, (term, machine.history[1]))
            case Follow(lease):
                machine.primary = False
                machine.leader = lease.holder
            case HandedOver(lease):
                if not any(made.holder == machine.giving and made.term == lease.term for made in self.made):
                    self.fail(f"{machine.id} says {machine.giving} has the lease, which it never had")
                machine.given, machine.giving = [], ""
            case NotHandedOver():
                self._check_not_handed(machine)
                machine.given, machine.giving = [], ""
            case Fence() | Resume():
                if self.steady:
                    self.fail(f"{machine.id} was fenced although nothing was wrong")
            case Read() | Swap() | MakeClaim() | ReadClaims():
                self._check_swap(machine, before, action)
                self._send(machine, action)

    def _check_not_handed(self, machine: Machine) -> None:
        self.refused.update(machine.given)
        if self.lease is not None and self.lease.nonce in machine.given:
            self.fail(f"{machine.id} says that the lease was not handed over: it was")

    def _check_swap(self, machine: Machine, before: State, action: decisions.Action) -> None:
        if not isinstance(action, Swap):
            return
        if action.lease.holder != machine.id:
            machine.given.append(action.lease.nonce)
            if action.lease.holder != machine.giving:
                self.fail(f"{machine.id} gives the lease to {action.lease.holder}, unasked")
            return
        current = action.version == str(self.version) and self.lease is not None and self.lease.holder != machine.id
        if current and not machine.wanted:
            if not machine.auto:
                self.fail(f"{machine.id} takes over by itself, and must not")
            if self.acting() is not None:
                self.fail(f"{machine.id} takes over while {self.lease} holds")

    def _watch(self, machine: Machine, life: int) -> None:
        if machine.life != life or machine.state is None:
            return
        self.at(self.now_s + WATCH_S, lambda: self._watch(machine, life))
        if not machine.runs or machine.state.role is not decisions.Role.FOLLOWER:
            return
        leader = self.machines.get(machine.leader)
        streams = leader is not None and leader is not machine and self.acts(leader)
        if leader is not None and frozenset((machine.id, leader.id)) in self.partitions:
            streams = False
        if streams and leader is not None:
            machine.history = leader.history
        known = (machine.state.streaming, machine.state.term, machine.state.txid, machine.state.fit)
        if known != (streams, *machine.history, machine.fit):
            self._step(machine, Following(machine.clock(self.now_s), streams, *machine.history, machine.fit))

    # The store

    def _send(self, machine: Machine, action: decisions.Action) -> None:
        machine.requests += 1
        kind = type(action).__name__
        machine.asked[kind] = machine.asked.get(kind, 0) + 1
        request = machine.request = Request(action)
        fate, epoch, life = self.fate(machine, machine.requests), self.epoch, machine.life

        def carry_out() -> None:
            if self.epoch == epoch and not self.down and not machine.cut_off:
                request.result = self._carried_out(machine, action)

        def answer() -> None:
            if machine.request is request:
                heard = request.result if fate.answered_s is not None and request.result is not None else Failed
                self._deliver(machine, life, heard)

        for applied_s in fate.applied_s:
            self.at(self.now_s + applied_s, carry_out)
        self.at(self.now_s + (TIMEOUT_S if fate.answered_s is None else fate.answered_s), answer)

    def _carried_out(self, machine: Machine, action: decisions.Action) -> Callable[[float], Event]:
        lease, version = self.lease, None if self.lease is None else str(self.version)
        match action:
            case Read():
                return lambda now_s: Found(now_s, lease, version)
            case Swap(new, over):
                if over != version and not self.lies:
                    return Refused
                if new.nonce in self.refused:
                    self.fail(f"{machine.id}'s hand-over is made after it was said not to be")
                self.lease, self.version = new, self.version + 1
                self.made.append(new)
                made = str(self.version)
                return lambda now_s: Swapped(now_s, new.nonce, made)
            case MakeClaim(nonce):
                machine.history = max(machine.history, self.archive)
                claim = Claim(machine.id, nonce, *machine.history, machine.priority)
                self.claims[machine.id] = claim
                return lambda now_s: Claims(now_s, made=claim)
            case _:
                claims = tuple(self.claims.values())
                return lambda now_s: Claims(now_s, claims)

    # What must come about

    def check_settles(self) -> None:
        """Once all faults are over somebody acts before long, and then all stays as it is, at little cost."""
        self.heal()
        running = [machine for machine in self.machines.values() if machine.state is not None]
        may = any(machine.auto or (self.lease is not None and self.lease.holder == machine.id) for machine in running)
        lease_s = self.lease.lease_s if self.lease is not None else LEASE_S
        self.run_on(lease_s * 1.05 + decisions.RANK_S * len(self.machines) + lease_s / 2 + 4)
        if self.lease is None or not may:
            return
        holder = self.acting()
        if holder is None:
            self.fail("nobody acts, long after all faults are over")
            return
        self.run_on(3 * WATCH_S)
        self.steady, term = True, self.highest
        before = {machine.id: (machine.requests, self.acted_s.get(machine.id, 0.0)) for machine in running}
        leases = 6
        self.run_on(leases * lease_s)
        for machine in running:
            requests = machine.requests - before[machine.id][0]
            most = decisions.RENEWALS if machine is holder else decisions.LOOKS if machine.auto else 0
            if requests > most * leases * 1.1 + 2 * (most > 0):
                self.fail(f"{machine.id} asks {requests} times in {leases} leases, while nothing happens")
        acted_s = self.acted_s.get(holder.id, 0.0) - before[holder.id][1]
        if acted_s < leases * lease_s * 0.999 or self.highest != term:
            self.fail(f"{holder.id} acts {acted_s} s of {leases * lease_s}, although nothing is wrong")


def _told(event: Event, before: State, actions: tuple[decisions.Action, ...]) -> str:
    """A line of a transcript."""
    return " ".join([_event(event), "→", ", ".join(map(_action, actions)) or "nothing"])


def _event(event: Event) -> str:
    match event:
        case Found(_, lease, _):
            return f"Found {_lease(lease)}"
        case Following(_, streaming, term, txid, fit):
            return f"Following{' streaming' * streaming} {term}/{txid}{'' if fit else ' unfit'}"
        case HandOver(_, to, _):
            return f"HandOver {to}"
        case Claims(_, claims, made):
            return f"Claims {made.id if made else [claim.id for claim in claims]}"
        case _:
            return type(event).__name__


def _action(action: decisions.Action) -> str:
    match action:
        case Swap(lease, version):
            return f"Swap {_lease(lease)} over {version}"
        case Promote(term):
            return f"Promote {term}"
        case Follow(lease) | HandedOver(lease):
            return f"{type(action).__name__} {lease.holder}"
        case _:
            return type(action).__name__


def _lease(lease: Lease | None) -> str:
    return "none" if lease is None else f"{lease.holder} {lease.term} {lease.nonce}"


# Random runs


@dataclass(frozen=True, slots=True)
class Fault:
    """`what` happens at `at_s`; the rest is of it."""

    at_s: float
    what: str
    node: str
    other: str
    for_s: float
    number: int


KINDS = ("crash", "doom", "pause", "store", "cut", "part", "want", "hand", "hand", "unfit", "rough", "rough")


def faults(seed: int, kinds: tuple[str, ...] = KINDS, *, for_s: float = 80.0) -> list[Fault]:
    """What goes wrong in the run of this seed."""
    random_ = random.Random(f"faults {seed}")
    ids = _ids(seed)
    found = []
    for _ in range(random_.randrange(3, 16)):
        node, at_s, kind = random_.choice(ids), random_.uniform(1, for_s), random_.choice(kinds)
        found.append(_fault(random_, ids, at_s, kind, node))
        if random_.random() < 0.3:  # and another one right after it
            at_s, kind = at_s + random_.choice((0.1, 0.3, 1.0, 4.0)) * random_.random(), random_.choice(kinds)
            found.append(_fault(random_, ids, at_s, kind, random_.choice((node, random_.choice(ids)))))
    return sorted((fault for fault in found if fault.at_s < for_s), key=lambda fault: fault.at_s)


def _fault(random_: random.Random, ids: str, at_s: float, kind: str, node: str) -> Fault:
    for_s = random_.choice((0.3, 1.0, 3.0, 8.0, 12.0, 25.0)) * random_.uniform(0.5, 1.5)
    return Fault(at_s, kind, node, random_.choice(ids), for_s, random_.randrange(3))


def _ids(seed: int) -> str:
    return "abcd"[: random.Random(f"nodes {seed}").choice((2, 2, 3, 3, 4))]


def play(
    seed: int,
    script: list[Fault] | None = None,
    *,
    lies: bool = False,
    kinds: tuple[str, ...] = KINDS,
    for_s: float = 80.0,
) -> World:
    """Run one seed, with faults of its own of these kinds, or with `script`; Violation if anything is ever wrong."""
    random_ = random.Random(f"world {seed}")
    machines = [
        Machine(
            id,
            rate=random_.choice((0.955, 1.0, 1.045)),
            offset_s=random_.uniform(-1e4, 1e4),
            auto=random_.random() < 0.75,
            priority=random_.randrange(2),
        )
        for id in _ids(seed)
    ]
    rough, slowness = [0.0], random_.choice((0.02, 0.1, 1.0))

    def fate(machine: Machine, number: int) -> Fate:
        dice = random.Random(f"{seed} {machine.id} {number}")
        return _fate(dice, 0.5 if world.now_s < rough[0] else 0.03, slowness)

    world = World(*machines, fate=fate)
    world.lies = lies
    machines[0].primary = True
    if random_.random() < 0.1:  # two that were told to be the first
        machines[1].primary = True
    for machine in machines:
        world.at(random_.uniform(0, 3), lambda machine=machine: world.boot(machine))
    for fault in faults(seed, kinds, for_s=for_s) if script is None else script:
        world.at(fault.at_s, lambda fault=fault: _befall(world, fault, rough))
    world.run(for_s)
    for machine in machines[1:] if random_.random() < 0.5 else machines:
        world.boot(machine)
    world.check_settles()
    return world


def _fate(dice: random.Random, rough: float, slowness: float) -> Fate:
    if dice.random() >= rough:
        return Fate((slowness * dice.uniform(0.0, 0.2),), slowness * dice.uniform(0.2, 0.5))
    long_s = dice.choice((0.8, 1.5, 2.0, 8.0, 20.0)) * dice.uniform(0.5, 1.5)
    kind = dice.choice(("lost", "answer lost", "delayed", "slow", "slow answer", "repeated"))
    return {
        "lost": LOST,
        "answer lost": ANSWER_LOST,
        "delayed": Fate((TIMEOUT_S + long_s,), None),
        "slow": Fate((long_s,), long_s + 0.1),
        "slow answer": Fate((0.05,), long_s),
        "repeated": Fate((0.05, 0.6, long_s), 0.7),
    }[kind]


def _befall(world: World, fault: Fault, rough: list[float]) -> None:
    machine, end_s = world.machines[fault.node], world.now_s + fault.for_s
    world.log.append(f"{world.now_s:7.2f} * {fault.what} {fault.node} {fault.other} {fault.for_s:.2f}")
    match fault.what:
        case "crash":
            world.crash(machine, fault.for_s)
        case "doom":
            machine.doomed = fault.number
        case "pause":
            world.pause(machine, fault.for_s)
        case "store":
            world.down = True
            world.at(end_s, lambda: setattr(world, "down", False))
        case "cut":
            machine.cut_off = True
            world.at(end_s, lambda: setattr(machine, "cut_off", False))
        case "part":
            pair = frozenset((fault.node, fault.other))
            world.partitions.add(pair)
            world.at(end_s, lambda: world.partitions.discard(pair))
        case "want":
            world.want(machine)
        case "hand":
            world.hand_over(fault.node)
        case "unfit":
            machine.fit = False
            world.at(end_s, lambda: setattr(machine, "fit", True))
        case "rough":
            rough[0] = end_s


def shrunk(seed: int, *, lies: bool = False, kinds: tuple[str, ...] = KINDS) -> Violation:
    """The violation of a seed with as few faults as it takes."""
    script, found = faults(seed, kinds), Violation("none")
    tries = [script]
    while tries:
        script = tries.pop(0)
        try:
            play(seed, script, lies=lies)
        except Violation as violation:
            found = violation
            tries = [script[:place] + script[place + 1 :] for place in range(len(script))]
    return Violation(f"seed {seed}, lies={lies}, faults {script}: {found}")


def explore(seeds: Iterable[int], *, lies: bool = False, kinds: tuple[str, ...] = KINDS) -> Violation | None:
    """The first violation among the seeds, with few faults."""
    for seed in seeds:
        try:
            play(seed, lies=lies, kinds=kinds)
        except Violation:
            return shrunk(seed, lies=lies, kinds=kinds)
    return None
