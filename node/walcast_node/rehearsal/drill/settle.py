"""After each step: everybody rests, and what was promised is compared with what is there."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from walcast.archive import list_files
from walcast.store import open_store
from walcast_node.rehearsal.drill import checks, sql
from walcast_node.rehearsal.drill.facts import Attached
from walcast_node.rehearsal.drill.ledger import Writable, overlaps
from walcast_node.rehearsal.drill.stage import Broken, Stage

if TYPE_CHECKING:
    from walcast_node.rehearsal.drill.steps import Scene

STEPS = {"switchover": "switchover", "kill": "kill -9", "partition": "partition", "stop": "SIGSTOP"}
SMALL_PART = 0.5


def settle(stage: Stage, scene: Scene) -> None:
    """All on one position, then compare."""
    since_s = stage.pause()
    level = stage.until("all three nodes are on one position and follow one primary", stage.level)
    stage.mark("all level")
    _times(stage, scene)
    _copies(stage, scene, str(level.position))
    _rows(stage, scene)
    _one_writable(stage, scene)
    _attached(stage, scene)
    if scene.step.key == "stop":
        _silent(stage, scene)
    stage.result.rests.append((stage.at(since_s), stage.at()))
    stage.load.tell("go")


def _promise(stage: Stage, scene: Scene, key: str, words: str, kept: bool | None, evidence: str) -> None:
    stage.result.promise(f"{scene.step.key}.{key}", scene.step.key, words, kept, evidence)


def _times(stage: Stage, scene: Scene) -> None:
    step, settings = scene.step, stage.settings
    if step.key == "switchover":
        words = f"apps wait at most {settings.max_pause_ms:g} ms"
        pause_ms = step.pause_ms
        kept = pause_ms is not None and pause_ms <= settings.max_pause_ms
        _promise(stage, scene, "pause", words, kept, f"{pause_ms:.0f} ms between two commits" if pause_ms else "?")
        return
    most_s = settings.lease_s + settings.slack_s
    words = f"the first write is within the lease and {settings.slack_s:g} s: {most_s:g} s"
    took_ms = step.first_write_ms
    kept = took_ms is not None and took_ms <= most_s * 1000
    _promise(stage, scene, "first-write", words, kept, f"{took_ms / 1000:.2f} s" if took_ms else "none")


def _copies(stage: Stage, scene: Scene, position: str) -> None:
    digests = checks.digests(stage.nodes)
    equal = len(set(digests.values())) == 1
    evidence = f"all at {position}, SHA-256 of all rows {next(iter(digests.values()))[:12]}…"
    if not equal:
        evidence = ", ".join(f"{name}: {digest[:12]}…" for name, digest in digests.items())
    _promise(stage, scene, "equal", "all copies are equal", equal, evidence)
    said = checks.integrity(stage.nodes)
    wrong = {name: text for name, text in said.items() if text != "ok"}
    _promise(stage, scene, "integrity", "integrity_check is ok everywhere", not wrong, str(wrong or "ok on all three"))


def _rows(stage: Stage, scene: Scene) -> None:
    step = scene.step
    assert scene.new is not None
    present = sql.numbers(scene.new.database)
    with stage.lock:
        acknowledged = stage.ledger.acknowledged()
        rows = stage.ledger.lost(present)
        step.committed = len(stage.ledger.rows)
    broken = acknowledged - present
    step.acknowledged = len(acknowledged)
    words = "what a barrier acknowledged is there"
    evidence = f"{len(acknowledged):,} rows, {len(broken)} missing" + (f": {sorted(broken)[:5]}" if broken else "")
    _promise(stage, scene, "acknowledged", words, not broken, evidence)
    lost = {row.number for row in rows} - scene.lost_before
    step.lost = len(lost)
    stage.lost |= lost
    if step.key == "switchover":
        _promise(stage, scene, "lost", "nothing is lost", not lost, f"{len(lost)} of {step.committed:,} rows")
    fresh = [kept for path, kept in checks.folders(stage.nodes).items() if path not in scene.kept_before]
    with open_store(stage.archive.spec) as store:
        kept = checks.find_kept(lost, fresh, store)
    step.kept_rows = len(kept.found)
    step.kept_in = [str(folder.path.relative_to(stage.folder)) for folder in kept.folders]
    if kept.proven:
        step.notes.append(f"{len(kept.proven)} lost rows were read from a database rebuilt of what was kept")
    if step.key != "switchover":
        words = "committed rows that are lost are kept aside"
        evidence = f"{len(kept.found)} of {len(lost)} found" + (f" in {', '.join(step.kept_in)}" if lost else "")
        _promise(stage, scene, "kept", words, kept.found == lost, evidence if lost else "none was lost")


def _one_writable(stage: Stage, scene: Scene) -> None:
    """Commits of the app and tries at all nodes; where walcast is dead or stopped nothing can hold writers, nor does
    the app write there."""
    step = scene.step
    with stage.lock:
        rows = [row for row in stage.ledger.rows if row.ended_s > scene.fault_s]
    seen = stage.seen.writable[scene.writable_from :]
    absent = scene.old.name if step.key in ("kill", "stop") else ""
    moments = [Writable(row.began_s, row.node) for row in rows if row.node != absent]
    moments += [one for one in seen if one.node != absent or one.at_s < scene.fault_s]
    wrong = overlaps(moments, step.old, step.new, scene.fault_s)
    evidence = f"{len(moments):,} moments at which the write lock was had, tries included"
    if wrong:
        evidence = f"{wrong[0].node} could be written to at {stage.at(wrong[0].at_s):.3f} s, {len(wrong)} times in all"
    _promise(stage, scene, "one-primary", "no two nodes are writable at one moment", not wrong, evidence)


def _attached(stage: Stage, scene: Scene) -> None:
    step = scene.step
    size = scene.old.database.stat().st_size
    pages = max(1, size // 4096)
    others = [one for one in step.attached if not (one.node == scene.old.name and scene.healed_s)]
    kept = bool(others) and all(0 <= one.copied_pages < pages * SMALL_PART for one in others)
    evidence = ", ".join(f"{one.node} after {(one.after_ms or 0) / 1000:.2f} s{_copied(one)}" for one in others)
    _promise(stage, scene, "reattached", "followers re-attach without a full copy", kept, evidence)
    back = next((one for one in step.attached if one.node == scene.old.name and scene.healed_s), None)
    if back is not None:
        small = 0 <= back.copied_pages < pages * SMALL_PART and back.bytes < size * SMALL_PART
        copied = (
            "from the archive, whole" if back.copied_pages < 0 else f"{back.copied_pages:,} of {pages:,} pages copied"
        )
        evidence = f"{copied}, {back.bytes / 1e6:.2f} MB came over of {size / 1e6:.1f} MB"
        _promise(stage, scene, "rejoin", "the old primary rejoins without a full copy", small, evidence)


def _copied(one: Attached) -> str:
    """A follower that had more than the new primary goes back to what that has."""
    if one.copied_pages < 0:
        return " from the archive, whole"
    return f" and {one.copied_pages} pages copied, because it was ahead" if one.copied_pages else ""


# One step's own


FENCED = 'the old primary refuses writes before its lease is over: "database is locked"'


def check_never_left(stage: Stage, scene: Scene) -> None:
    """No write came at another node. Was the app still welcome at the old one, long after its lease?"""
    step, old = scene.step, scene.old.name
    with stage.lock:
        last = max((row.ended_s for row in stage.ledger.rows if row.node == old), default=scene.fault_s)
    if step.key != "partition" or last - scene.fault_s < stage.settings.lease_s:
        return
    evidence = f"it still took writes {last - scene.fault_s:.1f} s after the cut"
    _promise(stage, scene, "fenced", FENCED, False, evidence)
    others = [one for one in stage.seen.writable[scene.writable_from :] if one.node != old]
    evidence = f"{old} took writes until {stage.at(last):.2f} s"
    evidence += f", {others[0].node} could be written to from {stage.at(others[0].at_s):.2f} s on" if others else ""
    both = bool(others) and others[0].at_s < last
    _promise(stage, scene, "one-primary", "no two nodes are writable at one moment", not both, evidence)


def check_fenced(stage: Stage, scene: Scene) -> None:
    """While it is cut off beyond its lease: what the app and our tries found at the old primary."""
    step, old = scene.step, scene.old.name
    with stage.lock:
        last = max((row.ended_s for row in stage.ledger.rows if row.node == old), default=scene.fault_s)
    last = max([last, *(one.at_s for one in stage.seen.writable[scene.writable_from :] if one.node == old)])
    after = [text for at_s, name, text in stage.seen.refused if name == old and at_s > last]
    step.fenced_ms = round((last - scene.fault_s) * 1000, 1)
    assert scene.first is not None
    texts = sorted(set(after))
    kept = bool(after) and last < scene.first.began_s and last - scene.fault_s < stage.settings.lease_s
    kept = kept and texts == ["database is locked"]
    stage.mark("fenced", old, last)
    evidence = f"last write {step.fenced_ms / 1000:.2f} s after the cut, then {len(after)} tries: {', '.join(texts)}"
    _promise(stage, scene, "fenced", FENCED, kept, evidence)


def archived_keys(stage: Stage) -> set[str]:
    """All LTX files of the archive now."""
    with open_store(stage.archive.spec) as store:
        return {file.key for file in list_files(store)}


def _silent(stage: Stage, scene: Scene) -> None:
    """After SIGCONT nothing of the old term came out: not into the archive, not to a follower."""
    begun, fault_s = scene.begun, scene.fault_s
    if begun is None or scene.keys is None or scene.healed_s is None:
        raise Broken("it is not known where the new term began")
    first, last = begun.start.txid + 1, begun.first_txid - 1
    with open_store(stage.archive.spec) as store:
        files = [file for file in list_files(store) if first <= file.max_txid <= last]
    late = [file.key for file in files if file.key not in scene.keys]
    applied = [
        f"{name} at {look.position}"
        for name, looks in stage.seen.looks.items()
        if name != scene.old.name
        for before, look in pairwise(looks)
        if look.at_s > fault_s and first <= look.position.txid <= last and before.position.txid >= begun.first_txid
    ]
    kept = not late and not applied
    evidence = "no file of the old term came into the archive, no follower went back to it"
    if not kept:
        evidence = (
            f"archived after that: {', '.join(late[:3]) or 'nothing'}; applied: {', '.join(applied[:3]) or 'nothing'}"
        )
    elif files:
        evidence += f"; {len(files)} that came before end inside the gap, where no restore goes"
    words = "woken up, the old holder neither publishes nor archives"
    _promise(stage, scene, "silent", words, kept, evidence)


def at_the_end(stage: Stage) -> None:
    """What the readers saw all along, and what the archive restores to."""
    result = stage.result
    stage.pause()
    level = stage.until("all three nodes are on one position at the end", stage.level)
    while stage.load.readers:  # whoever waits from now on does not miss them
        stage.load.readers.popitem()[1].finish(by_signal=False)
    broken = [f"{name}: {text}" for name, said in stage.load.read.items() for text in said["broken"]]
    back = [(name, *step) for name, said in stage.load.read.items() for step in said["back"]]
    result.reader_checks = sum(said["checks"] for said in stage.load.read.values())
    result.steps_back = len(back)
    words = "no reader saw half a transaction"
    evidence = f"{result.reader_checks:,} checks by {len(stage.load.read)} readers that never reconnected"
    result.promise("readers.whole", "", words, not broken, broken[0] if broken else evidence)
    with stage.lock:
        unknown = set(stage.ledger.unknown)
    strange = [step for step in back if step[4] not in stage.lost | unknown]
    evidence = f"{len(back)} steps back, each from rows that were lost" if back else "no step back"
    if strange:
        name, at_s, rows, to, _ = strange[0]
        evidence = f"{name} went from {rows} rows back to {to} at {stage.at(at_s):.2f} s, and none of them was lost"
    result.promise("readers.forward", "", "no reader went back in time but over what was lost", not strange, evidence)
    primary = next(node for node in stage.nodes.values() if node.name == stage.ledger.node)
    here = sql.digest(primary.database)
    with open_store(stage.archive.spec) as store:
        stage.until(
            "the archive has everything",
            lambda: (look := stage.seen.last(primary.name)) is not None and look.archived_txid >= level.position.txid,
        )
        there = checks.restored_digest(store, stage.folder)
    evidence = f"restored to {level.position}: the same rows, quick_check ok"
    words = "the archive restores to the same state"
    result.promise("archive.restores", "", words, here == there, evidence if here == there else "other rows")
