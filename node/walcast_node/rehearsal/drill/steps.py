"""The steps: something goes wrong, another node takes over, the one before comes back, and everything is compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from walcast import wire
from walcast.errors import Unavailable
from walcast.statedir import state_dir
from walcast.terms import TermStart, read_standing
from walcast_node.failover.switchover_request import switch_over
from walcast_node.rehearsal.drill import checks, settle
from walcast_node.rehearsal.drill.facts import Attached, Cut, Step, between
from walcast_node.rehearsal.drill.ledger import Row
from walcast_node.rehearsal.drill.nodes import Node
from walcast_node.rehearsal.drill.stage import Broken, Stage
from walcast_node.rehearsal.drill.watch import can_write

AFTER_S = 0.4
WRITES_ON_S = 0.6
HELD_S = 5.0

KILL = "kill"
PARTITION = "partition"
STOP = "stop"
SWITCHOVER = "switchover"

TITLES = {
    SWITCHOVER: ("switchover", "the primary hands its place to a follower, as for an upgrade"),
    KILL: ("kill -9 of the primary", "its process dies, and the app beside it with the machine"),
    PARTITION: ("partition of the holder", "no byte passes to it or from it, nor to its archive; its app goes on"),
    STOP: ("SIGSTOP of the holder", "its process stands still beyond its lease, while its app writes on for a moment"),
}


@dataclass(slots=True)
class Scene:
    """A step under way. `fault_s` and `healed_s` are moments of the monotonic clock."""

    step: Step
    old: Node
    logs: dict[str, int]
    kept_before: set[object]
    lost_before: set[int]
    writable_from: int
    term: int
    fault_s: float = 0.0
    healed_s: float | None = None
    new: Node | None = None
    first: Row | None = None
    begun: TermStart | None = None
    keys: set[str] | None = None
    rejoin_bytes: int = 0


def run(stage: Stage, key: str) -> None:
    """One step to its end. Broken when it cannot go on."""
    scene = _begin(stage, key)
    try:
        if key == SWITCHOVER:
            _switch(stage, scene)
        else:
            _STRIKES[key](stage, scene)
            _taken_over(stage, scene)
            _heal(stage, scene)
        _rejoined(stage, scene)
        settle.settle(stage, scene)
    finally:
        scene.step.ended_s = stage.at()


def _begin(stage: Stage, key: str) -> Scene:
    title, what = TITLES[key]
    stage.rest(stage.settings.calm_s)
    with stage.lock:
        old = stage.nodes[stage.ledger.node]
    look = stage.seen.last(old.name)
    if look is None or look.role != "primary":
        raise Broken(f"before the step {key!r} node {old.name}, where the app writes, is not the primary")
    step = Step(key, title, what, stage.at(), old=old.name)
    stage.result.steps.append(step)
    stage.say(f"{title}: {what}")
    return Scene(
        step,
        old,
        {name: node.log_size() for name, node in stage.nodes.items()},
        set(checks.folders(stage.nodes)),
        set(stage.lost),
        len(stage.seen.writable),
        look.term,
    )


def _strike(stage: Stage, scene: Scene, text: str) -> None:
    scene.fault_s = time.monotonic()
    scene.step.fault_s = stage.at(scene.fault_s)
    stage.mark(text, scene.old.name, scene.fault_s)


# What goes wrong


def _switch(stage: Stage, scene: Scene) -> None:
    target = next(node for node in stage.nodes.values() if node is not scene.old)
    _strike(stage, scene, f"switchover to {target.name}")
    words = "the command says that it is done"
    try:
        done = switch_over(wire.Address.parse(scene.old.listen), target.id, wire.Tls())
    except Unavailable as error:  # what did happen is seen next
        stage.result.promise("switchover.said", scene.step.key, words, False, str(error))
    else:
        held = f"the primary held writers for {done.pause_ms:.0f} ms"
        scene.step.notes.append(held)
        stage.result.promise("switchover.said", scene.step.key, words, True, held)
    _taken_over(stage, scene)


def _kill(stage: Stage, scene: Scene) -> None:
    _strike(stage, scene, "kill -9")
    scene.old.kill(lambda: stage.load.tell(f"down {scene.old.name}"))


def _partition(stage: Stage, scene: Scene) -> None:
    _strike(stage, scene, "cut off")
    scene.old.cut_off()


def _stop(stage: Stage, scene: Scene) -> None:
    _strike(stage, scene, "SIGSTOP")
    scene.old.stop()
    stage.rest(min(WRITES_ON_S, stage.settings.lease_s / 3))
    stage.load.tell(f"down {scene.old.name}")
    stage.mark("its app stops, too", scene.old.name)


_STRIKES: dict[str, Callable[[Stage, Scene], None]] = {KILL: _kill, PARTITION: _partition, STOP: _stop}


# Another one takes over


def _taken_over(stage: Stage, scene: Scene) -> None:
    """Until the app writes elsewhere: how long each part of the way took."""
    step, settings = scene.step, stage.settings
    others = [name for name in stage.nodes if name != scene.old.name]

    def first() -> Row | None:
        with stage.lock:
            return stage.ledger.first_after(scene.fault_s, others)

    what = f"a write at another node after {step.title}"
    try:
        row: Row = stage.until(what, first, settings.lease_s + settings.slack_s + settings.patience_s)
    except Broken:
        settle.check_never_left(stage, scene)
        raise
    scene.first, scene.new = row, stage.nodes[row.node]
    with stage.lock:
        before = stage.ledger.last_before(row)
    step.new = row.node
    step.first_write_ms = between(row.ended_s, scene.fault_s)
    step.pause_ms = between(row.ended_s, before.ended_s if before else None)
    stage.mark("first write", row.node, row.ended_s)
    stage.until(f"{row.node} says that it is the primary", lambda: _is_primary(stage, scene), of=row.node)
    scene.begun = _begun(scene.new, step.term)
    promoted = [
        stage.moment_of(event["time"])
        for event in scene.new.events(scene.logs[row.node])
        if str(event.get("event", "")).startswith("promoted")
    ]
    if promoted:
        step.promote_ms = between(promoted[0], scene.fault_s)
        stage.mark(f"primary of term {step.term}", row.node, promoted[0])
    if step.key != SWITCHOVER:
        claimed = [at_s for at_s, claim in stage.seen.claims if at_s > scene.fault_s and claim.id != scene.old.id]
        # In S3 a claim may be seen after what came of it.
        step.detect_ms = between(min([*claimed, *promoted], default=None), scene.fault_s)
    stage.rest(AFTER_S)


def _is_primary(stage: Stage, scene: Scene) -> bool:
    assert scene.new is not None
    look = stage.seen.last(scene.new.name)
    if look is None or look.role != "primary" or look.term <= scene.term:
        return False
    scene.step.term = look.term
    return True


def _begun(node: Node, term: int) -> TermStart | None:
    standing = read_standing(state_dir(node.database))
    return next((one for one in standing.history if one.term == term), None) if standing else None


# The one before comes back


def _heal(stage: Stage, scene: Scene) -> None:
    old, step = scene.old, scene.step
    if step.key == PARTITION:
        settle.check_fenced(stage, scene)
    scene.keys = settle.archived_keys(stage)
    scene.logs[old.name] = old.log_size()
    scene.rejoin_bytes = stage.proxies.passed_bytes(source=old.name, target=step.new)
    scene.healed_s = time.monotonic()
    step.healed_s = stage.at(scene.healed_s)
    if step.key == KILL:
        stage.mark("started again", old.name)
        old.start()
        stage.until(f"{old.name} is ready again", lambda: old.ready, of=old.name)
    elif step.key == PARTITION:
        stage.mark("healed", old.name)
        old.heal()
        stage.result.cuts.append(Cut(old.name, step.fault_s or 0.0, stage.at()))
    else:
        stage.mark("SIGCONT", old.name)
        old.go_on()
        _hold_again(stage, scene)


def _hold_again(stage: Stage, scene: Scene) -> None:
    """How long after SIGCONT the write lock can still be had where it must not; no app is there to take it."""
    assert scene.healed_s is not None
    end_s = scene.healed_s + HELD_S
    while can_write(scene.old)[0]:
        if time.monotonic() > end_s:
            raise Broken(f"{scene.old.name} goes on after SIGCONT, and does not hold its writers within {HELD_S:g} s")
        stage.check()
        time.sleep(0.001)
    held_ms = between(time.monotonic(), scene.healed_s)
    scene.step.notes.append(f"{scene.old.name} held its writers {held_ms} ms after SIGCONT")


def _rejoined(stage: Stage, scene: Scene) -> None:
    """Until the others follow the new primary; how, and how fast."""
    step, new = scene.step, scene.new
    assert new is not None
    for name, node in stage.nodes.items():
        if node is new:
            continue
        is_old = node is scene.old and scene.healed_s is not None
        since_s = scene.healed_s if is_old and scene.healed_s is not None else scene.fault_s

        def attached(name: str = name, since_s: float = since_s) -> float | None:
            looks = reversed(stage.seen.looks[name])
            found = None
            for look in looks:
                if look.at_s < since_s:
                    break
                if look.word == "follower" and look.primary == new.address and look.term >= step.term:
                    found = look.at_s
            return found

        at_s: float = stage.until(f"{name} follows {new.name}", attached, of=name)
        after_ms = between(at_s, since_s)
        stage.mark(f"follows {new.name}", name, at_s)
        one = Attached(name, after_ms)
        for event in node.events(scene.logs[name]):
            if event.get("event") == "copied from the primary":
                one.copied_pages += int(event["pages"])
            elif str(event.get("event", "")).startswith("bootstrapped"):
                one.copied_pages = -1
        if is_old:
            step.rejoin_ms = after_ms
            one.bytes = stage.proxies.passed_bytes(source=name, target=new.name) - scene.rejoin_bytes
        step.attached.append(one)
    stage.load.tell(f"up {scene.old.name}")
