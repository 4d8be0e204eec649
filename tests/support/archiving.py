"""An archiver in this process over a database that is captured here, and what both programs restore from it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.e2e_oracle import Served
from support.nodes import poll

from walcast.archive import ArchiveFile, list_files
from walcast.restore import restore
from walcast.store import Store
from walcast_primary.archiving import upkeep as upkeeping
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.archiving.compaction_schedule import ArchivePolicy
from walcast_primary.archiving.upkeep import Upkeep
from walcast_primary.archiving.upkeep_attempt import Attempt

LITESTREAM = Path(sys.executable).with_name("litestream")
# Nothing happens by itself but uploads.
CALM = ArchivePolicy(level_intervals_s=(3600.0, 7200.0), raw_retention_s=3600.0)


@contextmanager
def archiving(app: Served, store: Store, policy: ArchivePolicy = CALM) -> Iterator[Archiver]:
    """Archiving until the end of the block, twenty times a second at most."""
    archiver = Archiver(app.database, store, policy, interval_s=0.05)
    archiver.start()
    try:
        yield archiver
    finally:
        archiver.stop()


def archived(app: Served, archiver: Archiver) -> bool:
    """Waits until everything that is committed now is in the archive."""
    goal = app.position.txid
    return bool(poll(lambda: archiver.txid >= goal))


def compact_now(archiver: Archiver) -> None:
    """As if every interval had passed; waits until it is done."""
    upkeep = archiver._upkeep
    assert upkeep is not None

    def resting() -> bool:
        return upkeep._attempt is None or not upkeep._attempt.is_alive

    assert poll(resting)
    for level in upkeep._compacted_ms:
        upkeep._compacted_ms[level] = 0
    archiver._grown.set()
    assert poll(lambda: not upkeep._due(time.time_ns() // 1_000_000) and resting())


def levels(store: Store) -> dict[int, list[ArchiveFile]]:
    """What is in the archive, by level."""
    found: dict[int, list[ArchiveFile]] = {}
    for file in list_files(store):
        found.setdefault(file.level, []).append(file)
    return found


def restored(store: Store, output: Path, **target: int) -> bytes:
    """By walcast, checked by SQLite."""
    restore(store, output, integrity_check="full", force=True, **target)  # type: ignore[arg-type]
    return output.read_bytes()


def restored_by_litestream(store: Store, output: Path, *flags: str, env: dict[str, str] | None = None) -> bytes:
    """By the real Litestream."""
    output.unlink(missing_ok=True)
    command = [str(LITESTREAM), "restore", "-o", str(output), *flags, store.url]
    done = subprocess.run(command, capture_output=True, timeout=120, env=env or dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr.decode()
    return output.read_bytes()


def work_now(upkeep: Upkeep) -> None:
    """A round of what is due, in this thread."""
    upkeep._run(Attempt(upkeep._run, "upkeep", upkeeping._working.release))
