"""Who takes over gives every follower of the lost primary a moment to say how far it is: it may have more."""

from __future__ import annotations

import pytest

from walcast_node.failover.claims import Claim
from walcast_node.failover.decisions import RANK_S, start, step
from walcast_node.failover.lease import Lease
from walcast_node.failover.state import (
    Action,
    Claims,
    Event,
    Followed,
    Following,
    Found,
    MakeClaim,
    Node,
    Promote,
    Read,
    ReadClaims,
    Role,
    State,
    Swap,
    Swapped,
    Tick,
)

LEASE_S = 10.0
LOST = Lease(3, "a", "a:1", LEASE_S, "nonce", ("b", "c", "d"))


class Candidate:
    """The node b, whose primary is gone, against a store that answers at once."""

    def __init__(self, txid: int = 100) -> None:
        self.state: State = start(Node("b", "b:1", "run", LEASE_S, auto=True), term=3, primary=False)
        self.txid = txid
        self.claims: dict[str, Claim] = {}
        self.lease, self.version = LOST, "1"
        self.now_s = 0.0
        self.took_s: float | None = None
        self.asked = 0
        self.feed(Following(0.0, False, 3, txid, True))

    def claim(self, node: str, txid: int, nonce: str = "nonce") -> None:
        self.claims[node] = Claim(node, nonce, 3, txid)

    def run(self, until_s: float) -> None:
        """Ticks when they are due."""
        while self.state.tick_s <= until_s and self.took_s is None:
            self.now_s = max(self.now_s, self.state.tick_s)
            self.feed(Tick(self.now_s))
        self.now_s = max(self.now_s, until_s)

    def feed(self, event: Event) -> None:
        self.state, actions = step(self.state, event)
        for action in actions:
            self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        match action:
            case Read():
                self.feed(Found(self.now_s, self.lease, self.version))
            case MakeClaim(nonce):
                self.claim("b", self.txid)
                self.feed(Claims(self.now_s, made=Claim("b", nonce, 3, self.txid)))
            case ReadClaims():
                self.asked += 1
                self.feed(Claims(self.now_s, tuple(self.claims.values())))
            case Swap(lease):
                self.lease, self.version = lease, self.version + "1"
                self.took_s = self.now_s
                self.feed(Swapped(self.now_s, lease.nonce, self.version))
            case Promote():
                assert self.state.role is Role.PRIMARY


def test_when_all_have_said_it_the_first_in_line_takes_over_at_once() -> None:
    b = Candidate(txid=100)
    b.claim("c", 90)
    b.claim("d", 99)
    b.run(60.0)
    assert b.took_s == pytest.approx(LEASE_S, abs=0.1)


def test_one_that_says_nothing_is_waited_for_a_moment_and_no_longer() -> None:
    b = Candidate()
    b.claim("c", 90)
    b.run(60.0)
    assert b.took_s == pytest.approx(LEASE_S + RANK_S, abs=0.3)
    assert b.asked <= 8


def test_one_that_says_late_that_it_has_more_goes_first() -> None:
    b = Candidate(txid=100)
    b.claim("c", 90)
    b.run(LEASE_S + 0.4)
    b.claim("d", 101)
    b.run(LEASE_S + 0.9)
    assert b.took_s is None
    b.run(60.0)  # d does not take it after all
    assert b.took_s == pytest.approx(LEASE_S + RANK_S + 0.5, abs=0.6)


def test_what_was_said_of_an_older_lease_counts_for_nothing() -> None:
    b = Candidate()
    b.claim("c", 90, nonce="older")
    b.claim("d", 900, nonce="older")
    b.run(60.0)
    assert b.took_s == pytest.approx(LEASE_S + RANK_S, abs=0.3)


def test_a_primary_says_with_each_renewal_who_has_a_stream_and_takes_over() -> None:
    state = start(Node("a", "a:1", "run", LEASE_S), term=1, primary=True, first=True)
    state, actions = step(state, Followed(0.0, ("b", "c")))
    assert actions == (Read(),)
    state, actions = step(state, Found(0.0, None, None))
    [swap] = actions
    assert isinstance(swap, Swap)
    assert swap.lease.followers == ("b", "c")
    assert Lease.decode(swap.lease.encode(0.0)) == swap.lease
