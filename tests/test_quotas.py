"""The shares of what a primary can give: who takes more is refused, and members still find a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from walcast.rpc import replication_pb2 as pb
from walcast_primary.publish.quotas import HOLD_MOST_S, HOLD_WINDOW_S, HoldBudget, Limits, Pace, Places, who_of
from walcast_primary.publish.served_database import Refused
from walcast_primary.publish.stalled_receivers import unless_stalled

LIMITS = Limits("places", all_of=10, each=4, kept=2)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def taken(places: Places, who: str, wanted: int, *, member: bool = False, more: int = 0, trusted: bool = False) -> int:
    """How many of so many it gets."""
    got = 0
    for _ in range(wanted):
        try:
            places.take(who, member=member, more=more, trusted=trusted)
        except Refused as refused:
            assert refused.refusal.kind == pb.REFUSAL_KIND_TOO_MANY  # noqa: PT017
            break
        got += 1
    return got


def test_an_identity_has_its_share_and_no_more() -> None:
    places = Places(LIMITS)
    assert taken(places, "a", 9) == 4
    assert taken(places, "b", 9) == 4


def test_a_crowd_of_strangers_leaves_places_for_members() -> None:
    places = Places(LIMITS)
    assert sum(taken(places, f"stranger-{number}", 1) for number in range(50)) == 8
    assert taken(places, "node", 9, member=True) == 2


def test_a_member_has_more_than_a_strangers_share_and_keeps_no_other_member_out() -> None:
    places = Places(LIMITS)
    assert taken(places, "node", 99, member=True) == 5
    assert taken(places, "other", 99, member=True) == 5


def test_the_user_of_the_database_has_no_share() -> None:
    assert taken(Places(LIMITS), "user:1000", 99, member=True, trusted=True) == 10


def test_whoever_follows_many_databases_has_a_place_for_each() -> None:
    assert taken(Places(LIMITS), "a", 99, more=2) == 6


def test_a_place_that_is_given_back_is_another_ones() -> None:
    places = Places(LIMITS)
    held = [places.take("a") for _ in range(4)]
    with pytest.raises(Refused):
        places.take("a")
    held[0].close()
    held[0].close()  # harmless
    assert taken(places, "a", 9) == 1
    for place in held:
        place.close()
    assert places.taken == 1


def test_a_pace_is_kept_however_many_come() -> None:
    clock = Clock()
    pace, began_s = Pace(100, clock), clock.now_s
    for _ in range(1000):
        clock.now_s += pace.wait_s()
    assert 8.0 <= clock.now_s - began_s <= 11.0
    clock.now_s += 5.0
    assert pace.wait_s() == 0.0


def test_writers_are_held_only_so_long_within_a_minute() -> None:
    clock = Clock()
    budget = HoldBudget(clock)
    granted = []
    for _ in range(100):
        try:
            with budget.hold("a", "app", 4.0) as seconds:
                granted.append(seconds)
                clock.now_s += seconds
        except Refused:
            clock.now_s += 1.0
    times = 100 - len(granted)
    assert sum(granted) <= HOLD_MOST_S * (1 + (sum(granted) + times) / HOLD_WINDOW_S)
    assert max(granted) == 4.0
    with budget.hold("b", "app", 4.0) as seconds:  # each has his own
        assert seconds == 4.0


def test_what_was_not_used_of_a_hold_is_not_counted() -> None:
    clock = Clock()
    budget = HoldBudget(clock)
    for _ in range(50):
        with budget.hold("a", "app", 10.0) as seconds:
            assert seconds > 5.0
            clock.now_s += 0.1


def test_one_change_of_role_at_a_time_and_database() -> None:
    budget = HoldBudget(Clock())
    with budget.hold("a", "app", 1.0):
        with pytest.raises(Refused), budget.hold("b", "app", 1.0, trusted=True):
            pass
        with budget.hold("b", "other", 1.0):
            pass
    with budget.hold("b", "app", 1.0):
        pass


def test_the_owner_of_the_database_may_hold_writers_for_as_long_as_he_says() -> None:
    budget = HoldBudget(Clock())
    for _ in range(3):
        with budget.hold("owner", "app", 60.0, trusted=True) as seconds:
            assert seconds == 60.0


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        ("ipv4:10.0.0.9:4711", "10.0.0.9"),
        ("ipv6:%5B::1%5D:4711", "[::]"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:4711", "[2001:db8:1:2::]"),
        ("ipv6:[fe80::1%25eth0]:4711", "[fe80::]"),
        ("ipv6:[::ffff:10.0.0.9]:4711", "10.0.0.9"),
        ("unix:", "unix"),
        ("", "unknown"),
    ],
)
def test_an_address_is_one_identity_whatever_the_port(peer: str, who: str) -> None:
    assert who_of(peer) == who


def test_what_a_receiver_that_stands_still_holds_is_let_go_while_it_stands_still() -> None:
    async def run() -> None:
        held = asyncio.Event()

        async def messages() -> AsyncGenerator[int]:
            try:
                for number in range(9):
                    yield number
            finally:
                held.set()

        paced = unless_stalled(messages(), 0.05)
        assert [await anext(paced) for _ in range(3)] == [0, 1, 2]
        assert not held.is_set()
        async with asyncio.timeout(5.0):
            await held.wait()  # and nobody has asked for the next
        assert [number async for number in paced] == []

    asyncio.run(run())


def test_a_receiver_that_is_not_slow_gets_all_and_the_errors_too() -> None:
    async def run() -> None:
        async def messages() -> AsyncGenerator[int]:
            for number in range(9):
                yield number
            raise Refused(pb.REFUSAL_KIND_STOPPING, "over")

        paced = unless_stalled(messages(), 5.0)
        assert [await anext(paced) for _ in range(9)] == list(range(9))
        with pytest.raises(Refused):
            await anext(paced)

    asyncio.run(run())
