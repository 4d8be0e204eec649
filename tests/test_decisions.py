"""Who is primary: scenarios as transcripts, each also interrupted after every step; random worlds; planted bugs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from support.failover_world import ANSWER_LOST, KINDS, LOST, Fate, Machine, Violation, World, explore

from walcast_node.failover import decisions
from walcast_node.failover.decisions import Node, Refused, State, Step, Swap, Tick, start, step
from walcast_node.failover.lease import Lease

# Scenarios: a is the first primary, b may take over, c never does by itself


def three(**of_b: float) -> World:
    world = World(Machine("a", auto=False, primary=True), Machine("b", **of_b), Machine("c", auto=False))
    for machine in world.machines.values():
        world.at(0, lambda machine=machine: world.boot(machine))
    return world


def swap_fates(world: World, node: str, *fates: Fate) -> None:
    """The next swaps of `node` meet these fates."""
    left = list(fates)

    def fate(machine: Machine, number: int) -> Fate:
        asks = machine.request is not None and isinstance(machine.request.action, Swap)
        return left.pop(0) if left and asks and machine.id == node else Fate()

    world.fate = fate


def first_start(world: World) -> None:
    world.run(2)


def crash_restart(world: World) -> None:
    world.run(8)
    world.crash(world.machines["a"], 2)
    world.run(14)


def failover(world: World) -> None:
    world.run(8)
    world.crash(world.machines["a"])
    world.run(24)
    world.boot(world.machines["a"])
    world.run(28)


def switchover(world: World) -> None:
    world.run(8)
    world.hand_over("c")
    world.run(14)


def switchover_answer_lost(world: World) -> None:
    world.run(8)
    swap_fates(world, "a", ANSWER_LOST)
    world.hand_over("c")
    world.run(14)


def switchover_lost(world: World) -> None:
    world.run(8)
    swap_fates(world, "a", LOST)
    world.hand_over("c")
    world.run(14)


def forced(world: World) -> None:
    world.run(7)
    world.machines["a"].cut_off = True  # and goes on acting until its tenure is over
    world.run(9)
    world.want(world.machines["c"])
    world.run(24)


def outage(world: World) -> None:
    world.run(8)
    world.down = True
    world.run(24)
    world.down = False
    world.run(28)


def standstill(world: World) -> None:
    world.run(8)
    world.pause(world.machines["a"], 20)
    world.run(32)


SCENARIOS = {
    first_start: """
0.00 a starts
0.00 b starts
0.00 c starts
0.10 a Found none → Swap a 1 a1-1 over None
0.20 a Swapped → Promote 1
1.10 b Found a 1 a1-1 → Follow a
1.10 c Found a 1 a1-1 → Follow a
""",
    crash_restart: """
8.00 a crashes
10.00 a starts
10.10 a Found a 1 a1-3 → Swap a 1 a2-1 over 3
10.20 a Swapped → Promote 1
""",
    failover: """
8.00 a crashes
12.40 b Found a 1 a1-3 → Follow a, MakeClaim
12.50 b Claims b → Read
12.60 b Found a 1 a1-3 → Follow a
17.40 b Found a 1 a1-3 → Follow a, ReadClaims
17.50 b Claims ['b'] → Read
17.60 b Found a 1 a1-3 → Follow a, Swap b 2 b1-1 over 3
17.70 b Swapped → Promote 2
17.90 c Found b 2 b1-1 → Follow b
24.00 a starts
24.10 a Found b 2 b1-2 → Follow b
""",
    switchover: """
8.00 a HandOver c → Swap c 2 a1-4 over 3
8.10 a Swapped → HandedOver c, Follow c, Read
8.20 a Found c 2 a1-4 → Follow c
9.10 b Found c 2 a1-4 → Follow c
9.10 c Found c 2 a1-4 → Swap c 2 c1-1 over 4
9.20 c Swapped → Promote 2
""",
    switchover_answer_lost: """
8.00 a HandOver c → Swap c 2 a1-4 over 3
9.10 b Found c 2 a1-4 → Follow c
9.10 c Found c 2 a1-4 → Swap c 2 c1-1 over 4
9.20 c Swapped → Promote 2
10.43 a Found c 2 c1-1 → HandedOver c, Follow c, Read
10.53 a Found c 2 c1-1 → Follow c
""",
    switchover_lost: """
8.00 a HandOver c → Swap c 2 a1-4 over 3
10.43 a Found a 1 a1-3 → Swap a 1 a1-5 over 3
10.53 a Swapped → NotHandedOver
""",
    forced: """
9.00 c Wanted → Read
9.10 c Found a 1 a1-3 → Follow a, Swap c 2 c1-1+ over 3
9.20 c Swapped → Promote 2
9.90 b Found c 2 c1-1+ → Follow c
15.77 a Tick → Fence
""",
    outage: """
15.77 a Tick → Fence
24.20 a Found a 1 a1-3 → Swap a 1 a1-5 over 3
24.30 a Swapped → Resume
""",
    standstill: """
8.00 a stands still
12.40 b Found a 1 a1-3 → Follow a, MakeClaim
12.50 b Claims b → Read
12.60 b Found a 1 a1-3 → Follow a
17.40 b Found a 1 a1-3 → Follow a, ReadClaims
17.50 b Claims ['b'] → Read
17.60 b Found a 1 a1-3 → Follow a, Swap b 2 b1-1 over 3
17.70 b Swapped → Promote 2
17.90 c Found b 2 b1-1 → Follow b
28.00 a goes on
28.00 a Tick → Fence, Swap a 1 a1-4 over 3
28.10 a Refused → Read
28.20 a Found b 2 b1-4 → Follow b, Read
28.30 a Found b 2 b1-4 → Follow b
""",
}


def told(world: World, scenario: Callable[[World], None]) -> str:
    lines = world.transcript()
    return "\n".join(lines if scenario is first_start else [line for line in lines if float(line.split()[0]) > 2])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Callable[[World], None]) -> None:
    world = three()
    scenario(world)
    assert told(world, scenario) == SCENARIOS[scenario].strip()
    world.check_settles()


def interrupt_everywhere(scenario: Callable[[World], None], chosen: Callable[[], bool]) -> None:
    """Run it again and again, each time with a crash and a restart of one node after one step."""
    world = three()
    scenario(world)
    for id, machine in world.machines.items():
        for place in range(1, machine.steps + 1):
            for doomed in (None, 0) if chosen() else ():  # after the step's actions, before them
                again = three()
                again.machines[id].interrupted = place
                if doomed is not None:
                    again.machines[id].interrupted, again.machines[id].doomed_at = None, place
                scenario(again)
                again.check_settles()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario_interrupted_after_some_steps(scenario: Callable[[World], None], seed: int) -> None:
    dice = random.Random(seed)
    interrupt_everywhere(scenario, lambda: dice.random() < 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario_interrupted_after_every_step(scenario: Callable[[World], None]) -> None:
    interrupt_everywhere(scenario, lambda: True)


def test_of_two_candidates_the_one_that_has_more_takes_over_then_the_one_of_higher_priority() -> None:
    for more, priorities, expected in (("b", (0, 5), "b"), ("c", (5, 0), "c"), ("", (0, 5), "c"), ("", (5, 0), "b")):
        world = World(
            Machine("a", primary=True),
            Machine("b", priority=priorities[0]),
            Machine("c", priority=priorities[1]),
        )
        for machine in world.machines.values():
            world.boot(machine)
        world.run(8)
        world.crash(world.machines["a"])
        world.archive = (0, 0)  # nothing to catch up with
        if more:
            world.machines[more].history = (1, 1_000)
        world.run(25)
        holder = world.acting()
        assert holder is not None
        assert holder.id == expected, world.transcript()


def test_a_candidate_before_others_in_line_that_died_is_waited_for_a_moment_only() -> None:
    world = World(Machine("a", primary=True), Machine("b"), Machine("c", priority=9))
    for machine in world.machines.values():
        world.boot(machine)
    world.run(8)
    world.crash(world.machines["a"])
    world.run(16)  # the claims are made
    world.crash(world.machines["c"])
    world.run(21)
    holder = world.acting()
    assert holder is not None
    assert holder.id == "b"


# Random worlds


def test_no_random_world_breaks_a_rule(seed: int) -> None:
    found = explore(range(seed, seed + 60))
    if found is not None:
        raise found


@pytest.mark.slow
def test_none_of_many_random_worlds_breaks_a_rule(seed: int) -> None:
    for kinds in (
        KINDS,
        ("want", "crash", "cut", "pause"),
        ("hand", "rough"),
        ("hand", "want", "doom", "rough", "pause"),
    ):
        found = explore(range(seed, seed + 3_000), kinds=kinds)
        if found is not None:
            raise found


# Planted bugs: the worlds above would show them


def test_a_store_that_ignores_versions_is_found() -> None:
    assert explore(range(100), lies=True) is not None


def each(scenario: Callable[[float], None], times_s: list[float]) -> None:
    for time_s in times_s:
        scenario(time_s)


def cut_off_at(at_s: float) -> None:
    """The clock of a is slow, that of b fast, as far as the margin allows; a cannot renew any more."""
    world = World(Machine("a", auto=False, primary=True, rate=0.955), Machine("b", rate=1.045))
    world.fate = lambda machine, number: Fate((0.005,), 0.01)
    for machine in world.machines.values():
        world.boot(machine)
    world.run(at_s)
    world.machines["a"].cut_off = True
    world.partitions.add(frozenset("ab"))
    world.run(at_s + 16)
    assert world.acting() is world.machines["b"]


def test_the_margin_makes_up_for_clocks_of_other_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    times_s = [20 + 0.1 * number for number in range(100)]
    each(cut_off_at, times_s)
    monkeypatch.setattr(decisions, "MARGIN", 0.0)
    with pytest.raises(Violation, match=r"at the same time|takes over while"):
        each(cut_off_at, times_s)


def test_a_tenure_counted_from_the_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decisions._made
    monkeypatch.setattr(
        decisions, "_made", lambda state, now_s, own, version: made(state, now_s, replace(own, sent_s=now_s), version)
    )
    assert explore(range(300)) is not None


def hand_over_late(delay_s: float) -> None:
    """The swap that hands over is made late, and the first renewal after it never."""
    world = three()
    world.run(8)
    swap_fates(world, "a", Fate((delay_s,), None), LOST)
    world.hand_over("c")
    world.run(40)


def test_not_handed_over_is_said_only_after_a_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    delays_s = [0.5 * number for number in range(1, 20)]
    each(hand_over_late, delays_s)
    found = decisions._found

    def soon(state: State, now_s: float, lease: Lease | None, version: str | None) -> Step:
        state, actions = found(state, now_s, lease, version)
        if state.handing and lease is not None and lease.holder == state.node.id:
            return replace(state, handing=False, hand_to=None), (*actions, decisions.NotHandedOver())
        return state, actions

    monkeypatch.setattr(decisions, "_found", soon)
    with pytest.raises(Violation):
        each(hand_over_late, delays_s)


def test_a_lease_time_counted_from_before_a_renewal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    see = decisions._see

    def kept(state: State, now_s: float, lease: Lease, version: str) -> State:
        after = see(state, now_s, lease, version)
        same = state.lease is not None and state.lease.holder == lease.holder
        return replace(after, seen_s=state.seen_s) if same else after

    monkeypatch.setattr(decisions, "_see", kept)
    assert explore(range(100)) is not None


def test_an_early_take_forgotten_in_a_crash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    see = decisions._see
    monkeypatch.setattr(decisions, "_see", lambda *known: replace(see(*known), from_s=-math.inf))
    assert explore(range(200), kinds=("want", "crash", "cut", "pause")) is not None


def test_a_node_that_took_the_lease_early_waits_also_after_a_crash() -> None:
    world = three()
    world.run(7)
    world.machines["a"].cut_off = True
    world.run(9)
    world.want(world.machines["c"])
    world.run(10)
    world.crash(world.machines["c"], 0.5)
    world.run(15)
    assert world.acting() is world.machines["a"]
    world.run(24)
    assert world.acting() is world.machines["c"]


# Where there is no lease


def test_a_lease_that_was_removed_is_made_anew_by_its_holder_not_by_an_older_primary() -> None:
    world = World(Machine("a", primary=True), Machine("b", auto=False))
    world.boot(world.machines["a"])
    world.run(8)
    world.machines["b"].primary, world.machines["b"].history = True, (1, 5)
    world.lease = None
    world.boot(world.machines["b"])
    world.run(30)
    assert world.lease is not None
    assert (world.lease.holder, world.lease.term) == ("a", 1)


def test_a_primary_whose_lease_was_removed_while_it_was_down_waits_a_lease_time() -> None:
    world = World(Machine("a", primary=True))
    world.boot(world.machines["a"])
    world.run(8)
    world.crash(world.machines["a"])
    world.lease = None
    world.boot(world.machines["a"])
    world.run(17.9)
    assert world.acting() is None
    world.run(19)
    assert world.acting() is not None


# Single steps


def alone(**facts: object) -> State:
    return replace(start(Node("a", "a:1", "run", 10.0), term=0, primary=True), **facts)  # type: ignore[arg-type]


def test_a_store_that_refuses_everything_is_not_asked_as_fast_as_it_answers() -> None:
    state, now_s, asked = alone(), 0.0, 0
    while now_s < 100:
        state, actions = step(state, Tick(now_s))
        for action in actions:
            asked += 1
            now_s += 0.001
            answer = Refused(now_s) if isinstance(action, Swap) else decisions.Found(now_s, None, None)
            state, more = step(state, answer)
            while more and now_s < 1:  # what was answered at once is asked again at once
                asked += 1
                now_s += 0.001
                answer = Refused(now_s) if isinstance(more[0], Swap) else decisions.Found(now_s, None, None)
                state, more = step(state, answer)
        now_s = max(now_s, state.tick_s)
    assert asked < 100 / 10 * decisions.RETRY * 2 + 4


def test_a_shorter_lease_counts_from_when_it_is_sent() -> None:
    held = Lease(3, "a", "a:1", 5.0, "run-1")
    state = alone(role=decisions.Role.PRIMARY, term=3, lease=held, version="1", until_s=100.0, fresh=True, due_s=0.0)
    state, actions = step(state, Tick(0.0))
    assert isinstance(actions[0], Swap)
    assert state.until_s == 4.5


def test_a_lease_that_came_back_in_a_higher_term_is_renewed_in_that_term() -> None:
    held = Lease(3, "a", "a:1", 10.0, "run-1")
    state = alone(role=decisions.Role.FENCED, term=3, lease=held, version="1", until_s=9.0, busy=True)
    state, actions = step(state, decisions.Found(30.0, Lease(5, "a", "a:1", 10.0, "other-7"), "9"))
    assert isinstance(actions[0], Swap)
    assert actions[0].lease.term == 5
    _, actions = step(state, decisions.Swapped(30.1, actions[0].lease.nonce, "10"))
    assert actions == (decisions.Promote(5),)


def test_a_hand_over_that_was_not_tried_is_given_up_with_the_tenure() -> None:
    held = Lease(3, "a", "a:1", 10.0, "run-1")
    state = alone(role=decisions.Role.PRIMARY, term=3, lease=held, version="1", until_s=9.0, busy=True)
    state, actions = step(state, decisions.HandOver(8.0, "b", "b:1"))
    assert actions == ()
    state, actions = step(state, Tick(9.0))
    assert actions == (decisions.Fence(), decisions.NotHandedOver())


def test_no_two_swaps_of_a_life_have_the_same_nonce() -> None:
    world = three()
    failover(world)
    assert len({lease.nonce for lease in world.made}) == len(world.made)
