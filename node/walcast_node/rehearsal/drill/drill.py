"""A local drill from an empty folder to a result; whatever happens, every process is ended."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from walcast.errors import ConfigError, WalcastError
from walcast.filesystem import make_directory
from walcast.store import DirectorySpec, StoreSpec, open_store
from walcast_node.rehearsal.drill import power, settle, sql, steps
from walcast_node.rehearsal.drill.facts import Result, Span
from walcast_node.rehearsal.drill.ledger import Ledger
from walcast_node.rehearsal.drill.nodes import NAMES, NOT_YET, Archive, Node, identity
from walcast_node.rehearsal.drill.proxy import Proxies
from walcast_node.rehearsal.drill.stage import Broken, Load, Settings, Stage
from walcast_node.rehearsal.drill.watch import Watch

STEPS = (steps.SWITCHOVER, steps.KILL, steps.PARTITION, steps.STOP)
PAUSE_S = 0.1
FOLDER_LOOK_S = 0.04
S3_LOOK_S = 0.2


def run_drill(
    settings: Settings, folder: Path | None, archive: StoreSpec | None, *, keep: bool, say: Callable[[str], None]
) -> Result:
    """Play it. ConfigError when it cannot begin; everything later is in the result."""
    made = folder is None
    root = Path(tempfile.mkdtemp(prefix="walcast-drill-")) if folder is None else folder.absolute()
    if not made:
        if root.exists() and any(root.iterdir()):
            raise ConfigError(f"{root}: is not empty; give a folder that does not exist yet")
        make_directory(root, parents=True)
    place = Archive.below(
        archive or DirectorySpec(root), f"walcast-drill-{os.urandom(4).hex()}" if archive else "archive"
    )
    try:
        _check_archive(place)
        result = _play(settings, root, place, say)
        result.folder = str(root) if keep or not made else None
        return result
    finally:
        if archive is not None and not keep:
            with suppress(WalcastError, OSError):
                _remove(place)
        if made and not keep:
            shutil.rmtree(root, ignore_errors=True)
        with suppress(OSError):
            root.rmdir()  # nothing came into it


def _check_archive(place: Archive) -> None:
    with open_store(place.spec) as store:
        if not store.honours_swaps():
            why = "this store ignores preconditions, so no lease can be kept there, and no failover is automatic"
            raise ConfigError(f"{store.url}: {why}; give another --archive")


def _remove(place: Archive) -> None:
    """What the drill had in its place."""
    if isinstance(place.spec, DirectorySpec):
        shutil.rmtree(place.spec.path, ignore_errors=True)
        return
    with open_store(place.spec) as store:
        store.delete([found.key for found in store.list()])


def _play(settings: Settings, root: Path, place: Archive, say: Callable[[str], None]) -> Result:
    result = Result(
        version=version("walcast"),
        started=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        lease_s=settings.lease_s,
        rate=settings.rate,
        archive=place.spec.url,
        nodes=list(NAMES),
    )
    stage = _stage(settings, root, place, result, say)

    def interrupt(*_: object) -> None:
        stage.interrupted = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        _begin(stage)
        for key in STEPS:
            steps.run(stage, key)
        power.run(stage)
        settle.at_the_end(stage)
    except Broken as error:
        result.failure = " | ".join([str(error), *error.log])
    except (WalcastError, OSError, sqlite3.Error) as error:
        result.failure = f"{type(error).__name__}: {error}"
    finally:
        _end(stage)
        for number, handler in before.items():
            signal.signal(number, handler)
    _sum_up(stage)
    return result


def _stage(settings: Settings, root: Path, place: Archive, result: Result, say: Callable[[str], None]) -> Stage:
    proxies = Proxies({name: identity(name) for name in NAMES})
    proxies.start()
    nodes = {name: Node(name, root, proxies, place, settings.lease_s, first=name == NAMES[0]) for name in NAMES}
    ledger, lock = Ledger(), threading.Lock()
    load = Load(root, nodes, ledger, lock, settings.rate)
    every_s = FOLDER_LOOK_S if isinstance(place.spec, DirectorySpec) else S3_LOOK_S
    watch = Watch(nodes, open_store(place.spec), ledger, lock, store_every_s=every_s)
    return Stage(settings, root, place, proxies, nodes, ledger, lock, load, watch, result, say)


def _begin(stage: Stage) -> None:
    """A primary, its first snapshot, followers from that, an app and readers."""
    stage.say("a primary and two followers start, and an app that writes")
    first, *others = stage.nodes.values()
    sql.create(first.database, stage.settings.ballast_bytes)
    stage.watch.start()
    first.start()
    stage.until("the first primary is ready", lambda: first.ready, of=first.name)
    stage.until("a snapshot in the archive", lambda: (look := stage.seen.last(first.name)) and look.archived_txid)
    for node in others:
        node.start()
    for node in others:
        stage.until(f"{node.name} is ready", partial(getattr, node, "ready"), of=node.name)
    stage.until("all follow the primary", stage.level)
    stage.load.start()
    for name in stage.nodes:
        stage.load.start_reader(name)
    stage.until("the first writes and reads", lambda: stage.ledger.rows and len(stage.load.read) == len(stage.nodes))
    stage.mark("the app writes", first.name)


def _end(stage: Stage) -> None:
    """No process stays."""
    stage.watch.close()
    stage.load.end()
    for node in stage.nodes.values():
        with suppress(OSError):
            if node.cut:
                node.heal()
            node.end()
    stage.proxies.close()


def _sum_up(stage: Stage) -> None:
    result, ledger = stage.result, stage.ledger
    result.seconds = stage.at()
    result.attempted, result.committed = ledger.attempted, len(ledger.rows)
    result.acknowledged, result.lost = len(ledger.acknowledged()), len(stage.lost)
    result.unknown = len(ledger.unknown)
    result.rates = ledger.rates(stage.began_s, stage.began_s + result.seconds, result.bin_s)
    result.pauses = _pauses(stage)
    for name, words in stage.seen.words.items():
        ends = [at_s for at_s, _ in words[1:]] + [time.monotonic()]
        for (at_s, word), end_s in zip(words, ends, strict=True):
            if word == NOT_YET:
                continue
            result.spans.append(Span(name, word, max(0.0, stage.at(at_s)), min(result.seconds, stage.at(end_s))))
    result.marks.sort(key=lambda mark: mark.at_s)
    did = {step.key for step in result.steps if step.ended_s is not None}
    result.not_done = [key for key in (*STEPS, power.POWER) if key not in did]
    kept = result.failure is None
    evidence = f"{len(STEPS) + 1} steps in {result.seconds:.1f} s" if kept else str(result.failure)
    result.promise("drill.ended", "", "every step came to its end", kept, evidence)


def _pauses(stage: Stage) -> list[tuple[float, float]]:
    """Where apps could not write: from the last commit before each change of primary to the first after it."""
    found = []
    for step in stage.result.steps:
        if step.fault_s is not None and step.first_write_ms is not None and step.pause_ms is not None:
            end_s = step.fault_s + step.first_write_ms / 1000
            found.append((round(end_s - step.pause_ms / 1000, 4), round(end_s, 4)))
    return found
