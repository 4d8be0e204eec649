"""Who may be primary, decided without I/O and without a clock: state and event in, new state and actions out.

**In a term at most one node publishes or archives; at any moment at most one does.**

* A term belongs to the node whose compare-and-swap of the lease raised it, or to whom the holder handed it. A store
  that honours the comparison gives each term to one node.
* The holder is primary for its *tenure*: from the moment it *sent* the swap that succeeded, for the lease's time less a
  margin. Whoever takes over has seen the same nonce for the lease's whole time, counted from the moment its *answer
  came*. Sending is before writing is before seeing, so the one is over before the other begins. Only the rate of clocks
  counts (the margin), never what they show.
* An answer that was lost leaves it open whether a swap was made. Then the store is read, and a nonce that was sent is
  known by the time at which it was.

Times are seconds of a clock of this node that also counts while the machine sleeps. One request to the store is under
way at a time; whoever carries out `Read`, `Swap` and `ReadClaims` answers each with one event, also when it failed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from walcast_node.failover.claims import Claim, rank
from walcast_node.failover.lease import Lease, can_hold, fitting
from walcast_node.failover.state import (
    Action,
    Attempt,
    Claims,
    Event,
    Failed,
    Fence,
    Follow,
    Followed,
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
    Role,
    State,
    Step,
    Swap,
    Swapped,
    Tick,
    Wanted,
)

MARGIN = 0.1  # of the lease's time: for clocks that run at other rates
RENEWALS = 3  # tries to renew in the time of a lease
LOOKS = 4  # of a candidate, in the time of a lease
RANK_S = 1.0  # whoever is next in line lets those before it try for so long, and the first one the others say it
RETRY = 12  # after a failure, in the time of a lease
LOST_LOOK_S = 1.0  # of one that only looks for the primary's address
ATTEMPTS = 8
EARLY = "+"  # ends the nonce of a lease whose holder may not act yet: the tenure before may still run


def start(node: Node, *, term: int, primary: bool, first: bool = False) -> State:
    """A node whose history is of `term`. `primary`: it is to be primary if the lease is its own, or nobody's; `first`:
    it never knew of a lease, so that one which is missing was not removed under somebody."""
    return State(node, term=term, starting=primary, first=first)


def step(state: State, event: Event) -> Step:
    """What follows from `event`."""
    now_s = event.now_s
    state, fenced = _fence_when_over(state, now_s)
    state, actions = _heard(state, event)
    state, more = _next(state, now_s)
    return state, (*fenced, *actions, *more)


def _heard(state: State, event: Event) -> Step:
    match event:
        case Tick():
            return state, ()
        case Found(now_s, lease, version):
            return _found(replace(state, busy=False, fresh=True, due_s=now_s), now_s, lease, version)
        case Swapped(now_s, nonce, version):
            return _swapped(replace(state, busy=False), now_s, nonce, version)
        case Refused(now_s):
            # Twice in a row: a store that refuses everything must not be asked as fast as it answers.
            again_s = now_s + _lease_s(state) / RETRY if state.refused else now_s
            return replace(state, busy=False, fresh=False, refused=True, due_s=again_s), ()
        case Failed(now_s):
            return replace(state, busy=False, fresh=False, due_s=now_s + _lease_s(state) / RETRY), ()
        case Claims(now_s, claims, made):
            return _claims(replace(state, busy=False, fresh=False, due_s=now_s), now_s, claims, made), ()
        case Following():
            return _following(state, event), ()
        case Followed(_, followers):
            return replace(state, followers=fitting(followers)), ()
        case Wanted(now_s):
            return replace(state, wanted=state.role is Role.FOLLOWER, fresh=False, due_s=now_s), ()
        case HandOver(now_s, to, address):
            if not state.may_act(now_s) or to == state.node.id or not can_hold(to, address):
                return state, (NotHandedOver(),)
            return replace(state, hand_to=(to, address), due_s=now_s), ()


def _fence_when_over(state: State, now_s: float) -> Step:
    if state.role is not Role.PRIMARY or now_s < state.until_s:
        return state, ()
    state = replace(state, role=Role.FENCED)
    if state.hand_to is not None and not state.handing:  # not tried yet; once writers go on, nothing is drained
        return replace(state, hand_to=None), (Fence(), NotHandedOver())
    return state, (Fence(),)


# What was found


def _found(state: State, now_s: float, lease: Lease | None, version: str | None) -> Step:
    if lease is None or version is None:  # never made, or somebody removed it
        since_s = now_s if state.lease is not None or state.seen_s == -math.inf else state.seen_s
        return replace(state, lease=None, version=None, seen_s=since_s, claimed="", place=None), ()
    made = _attempt(state, lease.nonce)
    if made is not None:
        return _made(state, now_s, made, version)
    taken = state.lease is not None and lease.term > state.lease.term  # by somebody else, since this was wanted
    state = replace(_see(state, now_s, lease, version), wanted=state.wanted and not taken)
    if lease.holder == state.node.id:
        return state, ()  # still ours, handed to us, or ours from an earlier life: renewed next
    return _deposed(state) if state.role is not Role.FOLLOWER else (replace(state, starting=False), (Follow(lease),))


def _see(state: State, now_s: float, lease: Lease, version: str) -> State:
    if state.lease is not None and state.lease.nonce == lease.nonce and state.version == version:
        return state
    # Of our own one only an earlier life knows when the tenure before it ends: begin to count.
    from_s = now_s + lease.lease_s if lease.nonce.endswith(EARLY) else -math.inf
    known = replace(state, lease=lease, version=version, seen_s=now_s, from_s=from_s, first=False)
    return replace(known, claimed="", place=None)


def _deposed(state: State) -> Step:
    """The newest lease is another node's: perhaps of the one it was handed to, who has renewed it since."""
    lease, hand_to = state.lease, state.hand_to
    assert lease is not None
    if hand_to is None:
        return _as_follower(state), (Follow(lease),)
    given = state.handing and lease.holder == hand_to[0] and lease.term == state.term + 1
    return _as_follower(state), (HandedOver(lease) if given else NotHandedOver(), Follow(lease))


def _as_follower(state: State) -> State:
    return replace(
        state,
        role=Role.FOLLOWER,
        until_s=-math.inf,
        hand_to=None,
        handing=False,
        followers=(),
        streaming=False,
        fit=False,
        fresh=False,
    )


# What was made


def _attempt(state: State, nonce: str) -> Attempt | None:
    return next((attempt for attempt in state.sent if attempt.lease.nonce == nonce), None)


def _swapped(state: State, now_s: float, nonce: str, version: str) -> Step:
    made = _attempt(state, nonce)
    if made is None:
        return replace(state, fresh=False, due_s=now_s), ()
    return _made(replace(state, fresh=True), now_s, made, version)


def _made(state: State, now_s: float, made: Attempt, version: str) -> Step:
    """A swap of ours is in the store. All that were sent before it were over older versions: none can be made yet."""
    state = replace(_see(replace(state, sent=(), refused=False), now_s, made.lease, version), from_s=made.from_s)
    if made.lease.holder != state.node.id:
        return _as_follower(state), (HandedOver(made.lease), Follow(made.lease))
    until_s = made.sent_s + made.lease.lease_s * (1 - MARGIN)
    due_s = now_s if state.hand_to is not None and not state.handing else made.sent_s + made.lease.lease_s / RENEWALS
    state = replace(state, until_s=until_s, due_s=due_s)
    if now_s >= until_s:
        return replace(state, due_s=now_s), ()  # too late to be worth anything
    kept: tuple[Action, ...] = ()
    if state.handing:
        state, kept = replace(state, handing=False, hand_to=None), (NotHandedOver(),)
    if state.role is Role.FOLLOWER or made.lease.term != state.term:
        state = replace(state, role=Role.PRIMARY, term=made.lease.term, wanted=False, starting=False)
        return state, (*kept, Promote(made.lease.term))
    if state.role is Role.FENCED:
        return replace(state, role=Role.PRIMARY), (*kept, Resume())
    return state, kept


# What others say


def _claims(state: State, now_s: float, claims: tuple[Claim, ...], made: Claim | None) -> State:
    if made is not None:
        return replace(state, claimed=made.nonce, txid=made.txid, term=made.term)
    lease = state.lease
    database = lease.database if lease is not None else ""
    mine = Claim(state.node.id, state.claimed, state.term, state.txid, state.node.priority, database)
    if lease is not None and now_s < state.seen_s + lease.lease_s + RANK_S:
        missing = set(lease.followers) - {claim.id for claim in claims if claim.nonce == lease.nonce} - {mine.id}
        if missing:  # one of them may have more
            return replace(state, place=None, due_s=now_s + RANK_S / LOOKS)
    return replace(state, place=rank(claims, mine), lined_s=now_s)


def _following(state: State, event: Following) -> State:
    if state.role is not Role.FOLLOWER:
        return state
    changed = state.streaming != event.streaming or state.fit != event.fit
    state = replace(state, streaming=event.streaming, term=event.term, txid=event.txid, fit=event.fit)
    return replace(state, fresh=False, due_s=event.now_s) if changed else state


# What is next


def _next(state: State, now_s: float) -> Step:
    """The next request, if one is due; always one that finds out first what is there, unless that was just answered."""
    if state.busy or now_s < state.due_s:
        return state, ()
    if not state.fresh:
        return replace(state, busy=True), (Read(),)
    if state.role is not Role.FOLLOWER:
        return _holder_next(state, now_s)
    return _follower_next(state, now_s)


def _holder_next(state: State, now_s: float) -> Step:
    if state.hand_to is not None and state.may_act(now_s):
        return _swap(replace(state, handing=True), now_s, state.term + 1, *state.hand_to)
    if state.lease is None and not state.may_act(now_s) and now_s < _gone_s(state):
        return _look(state, now_s, _gone_s(state))
    # Of a higher term: it went to another node and came back while this one stood still.
    term = state.term if state.lease is None else max(state.term, state.lease.term)
    return _swap(state, now_s, term, state.node.id, state.node.address)


def _follower_next(state: State, now_s: float) -> Step:
    lease, node = state.lease, state.node
    if lease is None:
        if state.starting or state.wanted:
            if not state.first and state.term > 0 and now_s < _gone_s(state):
                return _look(state, now_s, _gone_s(state))
            return _swap(state, now_s, state.term + 1 if state.wanted else max(1, state.term), node.id, node.address)
        return _look(state, now_s)
    if lease.holder == node.id and state.term <= lease.term:
        return _swap(state, now_s, lease.term, node.id, node.address)
    if state.wanted or lease.holder == node.id:
        return _take(state, now_s, lease)
    if state.streaming or not node.auto or not state.fit:
        return _look(state, now_s)
    return _candidate_next(state, now_s, lease)


def _candidate_next(state: State, now_s: float, lease: Lease) -> Step:
    """The lease is not renewed: first say how far we are, then, when it has run out, take it in turn."""
    claim_s, over_s = state.seen_s + lease.lease_s / 2, state.seen_s + lease.lease_s
    if state.claimed != lease.nonce:
        if now_s < claim_s:
            return _look(state, now_s, claim_s)
        return replace(state, busy=True), (MakeClaim(lease.nonce),)
    if now_s < over_s:
        return _look(state, now_s, over_s)
    if state.place is None:
        return replace(state, busy=True), (ReadClaims(),)
    turn_s = state.lined_s + RANK_S * state.place
    if now_s < turn_s:
        return _look(state, now_s, turn_s)
    return _take(state, now_s, lease)


def _look(state: State, now_s: float, at_s: float = math.inf) -> Step:
    """Look at the lease again when it is time to, and at `at_s`."""
    lease_s = _lease_s(state)
    every_s = math.inf if state.streaming else LOST_LOOK_S
    if state.node.auto:
        every_s = min(every_s, lease_s / LOOKS)
    return replace(state, fresh=False, due_s=min(now_s + every_s, at_s)), ()


def _take(state: State, now_s: float, lease: Lease) -> Step:
    return _swap(state, now_s, max(lease.term, state.term) + 1, state.node.id, state.node.address)


def _swap(state: State, now_s: float, term: int, holder: str, address: str) -> Step:
    """All nodes of a set go by the time of the lease that is there; the first one says it."""
    from_s, lease_s = _from_s(state), _lease_s(state)
    early = EARLY if now_s < from_s else ""
    followers = state.followers if holder == state.node.id else ()
    database = state.lease.database if state.lease is not None else ""
    lease = Lease(term, holder, address, lease_s, f"{state.node.run}-{state.count + 1:x}{early}", followers, database)
    sent = (*state.sent, Attempt(lease, now_s, from_s))[-ATTEMPTS:]
    # Shorter than what was there: it counts from now on, whether the answer comes or not.
    until_s = min(state.until_s, now_s + lease_s * (1 - MARGIN))
    state = replace(state, busy=True, sent=sent, until_s=until_s, count=state.count + 1)
    return state, (Swap(lease, state.version),)


def _lease_s(state: State) -> float:
    return state.lease.lease_s if state.lease is not None else state.node.lease_s


def _from_s(state: State) -> float:
    """When all tenures are over of those who held the lease before this node."""
    if state.lease is None:
        return -math.inf  # whoever had one was waited for
    return state.from_s if state.holds else state.seen_s + state.lease.lease_s


def _gone_s(state: State) -> float:
    """When it is safe to make a lease where there is none: who has a tenure makes it anew long before."""
    return state.seen_s + state.node.lease_s
