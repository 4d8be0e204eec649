"""When to compact, when to take a snapshot, what may go. Pure: what is known of the archive in, decisions out.

Invariant: whatever part of `expired` is deleted, in whatever order, by whoever is interrupted, the newest TXID stays
restorable, and so does every moment that the policy promises. That holds because a file only goes when another one
that stays holds its pages: a level-0 file when a level-1 file spans it, anything when a snapshot at or after its
end stays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from walcast.archive import SNAPSHOT_LEVEL, ArchiveFile

DAY_S = 86_400.0
MAX_INPUTS = 64
FUTURE_MS = 120_000


@dataclass(frozen=True, slots=True)
class ArchivePolicy:
    """How an archive is kept. Durations in seconds.

    `level_intervals_s[i]` is that of level i + 1: what the level below has is compacted into it at every full
    interval. Any moment of the last `retention_s` stays restorable, to the grain of level 1; the last
    `raw_retention_s` to the grain of single uploads. Without `delete` nothing is ever removed.

    The defaults are Litestream's but for `retention_s`: its one day would be gone after a weekend.
    """

    level_intervals_s: tuple[float, ...] = (30.0, 300.0, 3600.0)
    snapshot_interval_s: float = DAY_S
    retention_s: float = 7 * DAY_S
    raw_retention_s: float = 300.0
    delete: bool = True


@dataclass(frozen=True, slots=True)
class Expired:
    """Files that may go, and those that must be proven whole before: they take over."""

    files: tuple[ArchiveFile, ...]
    relied_on: tuple[ArchiveFile, ...]


def compaction_inputs(below: Sequence[ArchiveFile], end_txid: int) -> list[ArchiveFile]:
    """What the level below has beyond `end_txid`, where a level ends: the next contiguous run, of MAX_INPUTS at most.

    Each file of the answer begins at or before the TXID after the one before it ends. Where the level below has a hole
    behind `end_txid` (a snapshot bridges it), the run begins behind the hole.
    """
    ahead = sorted(
        (file for file in below if file.max_txid > end_txid), key=lambda file: (file.min_txid, file.max_txid)
    )
    if not ahead:
        return []
    run: list[ArchiveFile] = []
    reached = max(end_txid, ahead[0].min_txid - 1)
    best: ArchiveFile | None = None
    for file in ahead:
        if file.min_txid > reached + 1:
            if best is None:
                break
            run.append(best)
            reached, best = best.max_txid, None
            if file.min_txid > reached + 1 or len(run) == MAX_INPUTS:
                break
        if file.max_txid > reached and (best is None or file.max_txid > best.max_txid):
            best = file
    if best is not None and len(run) < MAX_INPUTS:
        run.append(best)
    return run


def interval_passed(now_ms: int, last_ms: int, interval_s: float) -> bool:
    """Is it another interval, counted from the epoch? Another one before, too: the clock may have been ahead."""
    return now_ms // (interval_s * 1000) != last_ms // (interval_s * 1000)


def snapshot_due(files: Iterable[ArchiveFile], policy: ArchivePolicy, now_ms: int) -> bool:
    """Is the newest snapshot older than the interval, and is there anything newer in the archive?

    One from the future says nothing of its age, so it counts as old.
    """
    newest_txid, snapshot = 0, None
    for file in files:
        newest_txid = max(newest_txid, file.max_txid)
        if file.level == SNAPSHOT_LEVEL and (snapshot is None or file.max_txid > snapshot.max_txid):
            snapshot = file
    if snapshot is None:
        return newest_txid > 0
    age_ms = now_ms - snapshot.timestamp_ms
    return newest_txid > snapshot.max_txid and not -FUTURE_MS <= age_ms < policy.snapshot_interval_s * 1000


def expired(files: Sequence[ArchiveFile], policy: ArchivePolicy, now_ms: int) -> Expired:
    """What the policy does not need any more.

    The base is the newest snapshot that is older than the retention: with it and what comes after it every moment
    inside the retention can be restored, so all that ends at or before it goes.
    """
    if not policy.delete:
        return Expired((), ())
    gone: list[ArchiveFile] = []
    relied_on: set[ArchiveFile] = set()
    base = _base(files, now_ms - policy.retention_s * 1000, now_ms)
    level_1 = sorted((f for f in files if f.level == 1), key=lambda file: file.min_txid)
    starts = [file.min_txid for file in level_1]
    for file in files:
        if base is not None and file is not base and file.max_txid <= base.max_txid:
            gone.append(file)
            relied_on.add(base)
        elif file.level == 0:
            over = _spanning(level_1, starts, file)
            # All of a level-1 file's range or nothing of it: from one in the middle nothing leads on.
            if over is not None and over.timestamp_ms <= now_ms - policy.raw_retention_s * 1000:
                gone.append(file)
                relied_on.add(over)
    return Expired(tuple(gone), tuple(sorted(relied_on.difference(gone), key=lambda file: file.max_txid)))


def _base(files: Iterable[ArchiveFile], before_ms: float, now_ms: int) -> ArchiveFile | None:
    """The newest snapshot that is older than `before_ms`, and whose time can be believed.

    TXIDs ascend with time. So a snapshot is not older than the one before it, whatever a clock said that was behind;
    and one from the future is as old as the one after it.
    """
    snapshots = sorted((file for file in files if file.level == SNAPSHOT_LEVEL), key=lambda file: file.max_txid)
    times_ms: list[float] = []
    later_ms: float = now_ms
    for file in reversed(snapshots):
        later_ms = later_ms if file.timestamp_ms > now_ms + FUTURE_MS else file.timestamp_ms
        times_ms.append(later_ms)
    base, reached_ms = None, 0.0
    for file, time_ms in zip(snapshots, reversed(times_ms), strict=True):
        reached_ms = max(reached_ms, time_ms)
        if reached_ms > before_ms:
            break
        base = file
    return base


def _spanning(level_1: Sequence[ArchiveFile], starts: Sequence[int], file: ArchiveFile) -> ArchiveFile | None:
    """A level-1 file that holds all that `file` does. One that begins later cannot; of the others, those that begin
    close before it are the ones to look at."""
    at = bisect_right(starts, file.min_txid)
    for candidate in reversed(level_1[max(0, at - 4) : at]):
        if candidate.max_txid >= file.max_txid:
            return candidate
    return None
