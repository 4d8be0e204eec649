"""Archives that Litestream 0.3 wrote: names, and the plan of a restore. Planning is pure: a listing in, files out.

    generations/<generation, 16 hex>/snapshots/<index, 8 hex>.snapshot.lz4
    generations/<generation>/wal/<index>_<offset, 8 to 16 hex>.wal.lz4

Directories and S3 have the same layout. A **generation** is one unbroken run of replication. In it an **index** counts
the WALs that the database had one after the other, from 0; a segment is what was added to that WAL at `offset` bytes.
Snapshot N is a copy of the database file made while WAL N was the current one: it may already hold some of WAL N, and
is a state of the database once WAL N is applied up to there. Every file is one LZ4 frame.

**Times.** Nothing inside these files says when or in what order generations were written: it is all the store's
modification times, milliseconds in a directory, whole seconds on S3. A copy of an archive that has not kept them
restores its newest state only while it holds one generation.

Two things cannot be seen, by Litestream neither: that the last segments of a WAL are missing, and that at the time
asked for a snapshot was there, but not yet all of the WAL that it holds some of. An integrity check may find them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from walcast.archive.files import SNAPSHOT_LEVEL, ArchiveEmpty, ArchiveFile, TxidNotAvailable
from walcast.errors import ConfigError, Unavailable
from walcast.moment import format_moment
from walcast.store.base import Store

_FOLDER = "generations/"
_KEY = re.compile(
    r"generations/(?P<generation>[0-9a-f]{16})/"
    r"(?:snapshots/(?P<snapshot>[0-9a-f]{8})\.snapshot|wal/(?P<index>[0-9a-f]{8})_(?P<offset>[0-9a-f]{8,16})\.wal)\.lz4"
)


@dataclass(frozen=True, slots=True)
class GenerationFile(ArchiveFile):
    """One file of a generation. It has no TXIDs: both are 0. `offset`: bytes into WAL `index`; None for a snapshot."""

    generation: str
    index: int
    offset: int | None

    @property
    def is_snapshot(self) -> bool:
        """Whether it holds the whole database."""
        return self.offset is None

    @property
    def place(self) -> tuple[int, int]:
        """The order within a generation: a snapshot before the WAL of its index."""
        return self.index, -1 if self.offset is None else self.offset


class GenerationGap(Unavailable):
    """Segment `missing` (a key) is not there, though `after` goes on behind it."""

    def __init__(self, missing: str, after: GenerationFile, hint: str = "") -> None:
        super().__init__(f"the archive has a gap: {missing} is missing, and {after.key} goes on after it{hint}")
        self.missing = missing
        self.after = after


def segment_key(generation: str, index: int, offset: int) -> str:
    """The key of a WAL segment."""
    return f"{_FOLDER}{generation}/wal/{index:08x}_{offset:08x}.wal.lz4"


def parse_key(key: str, size: int, timestamp_ms: int) -> GenerationFile | None:
    """The file that a line of a listing names; None for a foreign name."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    generation = match["generation"]
    if match["snapshot"] is not None:
        index, offset, level = int(match["snapshot"], 16), None, SNAPSHOT_LEVEL
    else:
        index, offset, level = int(match["index"], 16), int(match["offset"], 16), 0
    return GenerationFile(level, 0, 0, size, timestamp_ms, key, generation, index, offset)


def list_generations(store: Store) -> list[GenerationFile]:
    """The files of all generations in the archive; none for an archive that Litestream 0.3 did not write."""
    lines = (parse_key(found.key, found.size, found.timestamp_ms) for found in store.list(_FOLDER))
    return [file for file in lines if file is not None]


def plan_generation(
    files: Sequence[GenerationFile], *, txid: int | None = None, timestamp_ms: int | None = None
) -> list[GenerationFile]:
    """What to apply, in order: the newest snapshot of the newest generation, then all WAL segments from its index on.

    With `timestamp_ms` only what the store had by then, that moment included: the state is that of the last segment
    uploaded in time, and Litestream uploads a commit up to a second (`sync-interval`) after it was made.

    The newest generation is the one with the newest file; between equal times, the one with the newer snapshot. An
    older one is never taken in its place: that would restore less than the archive has.

    Raises ConfigError for a TXID, ArchiveEmpty, TxidNotAvailable (also for times), GenerationGap. A segment missing
    between two of one WAL is found only when they are read.
    """
    if txid is not None:
        raise ConfigError(
            "Litestream 0.3 wrote this archive, and its files carry no TXIDs: restore with --timestamp, or the newest"
        )
    usable = [file for file in files if timestamp_ms is None or file.timestamp_ms <= timestamp_ms]
    if not usable:
        if timestamp_ms is None or not files:
            raise ArchiveEmpty("nothing to restore from: the archive has no generations; check its URL")
        oldest_ms = min(file.timestamp_ms for file in files)
        raise TxidNotAvailable(
            f"the archive does not reach back to {format_moment(timestamp_ms)}: {_oldest(oldest_ms)}"
        )
    snapshot_ms: dict[str, int] = {}
    for file in usable:
        if file.is_snapshot:
            snapshot_ms[file.generation] = max(snapshot_ms.get(file.generation, 0), file.timestamp_ms)
    newest = max(usable, key=lambda file: (file.timestamp_ms, snapshot_ms.get(file.generation, 0))).generation
    if newest not in snapshot_ms:
        raise _no_snapshot(files, usable, newest, timestamp_ms)
    return _chain([file for file in files if file.generation == newest], timestamp_ms)


def plan_to(files: Sequence[GenerationFile], goal: GenerationFile) -> list[GenerationFile]:
    """The plan that ends with segment `goal`, from the newest snapshot that there is: what a second try needs.

    Raises ArchiveEmpty when no snapshot is left or `goal` is gone, GenerationGap.
    """
    within = [file for file in files if file.generation == goal.generation and file.place <= goal.place]
    if not any(file.is_snapshot for file in within):
        raise ArchiveEmpty(f"generation {goal.generation} has no other snapshot up to {goal.key}")
    plan = _chain(within, None)
    if plan[-1].key != goal.key:
        raise ArchiveEmpty(f"{goal.key} is not in the archive any more")
    return plan


def hint_before(files: Sequence[GenerationFile], before: GenerationFile, bad: GenerationFile) -> str:
    """How to restore up to `before`, the file ahead of `bad` in a plan: the end of an error message, or nothing."""
    try:
        plan = plan_generation(files, timestamp_ms=before.timestamp_ms)
    except (GenerationGap, ConfigError):
        return ""
    if plan[-1].generation != bad.generation or plan[-1].place >= bad.place or bad in plan:
        return ""
    return f"; without it the archive restores to --timestamp {format_moment(before.timestamp_ms)}"


def _chain(files: Iterable[GenerationFile], timestamp_ms: int | None) -> list[GenerationFile]:
    """The newest snapshot of one generation, and the segments from its index on up to the first that is too new."""
    files = sorted(files, key=lambda file: file.place)
    in_time = [file for file in files if timestamp_ms is None or file.timestamp_ms <= timestamp_ms]
    plan = [[file for file in in_time if file.is_snapshot][-1]]
    for file in files:
        if file.is_snapshot or file.index < plan[0].index:
            continue
        if timestamp_ms is not None and file.timestamp_ms > timestamp_ms:
            break
        missing = _missing_between(plan[-1], file)
        if missing is not None:
            hint = hint_before(files, plan[-1], file) if timestamp_ms is None else ""
            raise GenerationGap(segment_key(file.generation, *missing), file, hint)
        plan.append(file)
    return plan


def _missing_between(last: GenerationFile, file: GenerationFile) -> tuple[int, int] | None:
    """The index and offset of a segment that must be between, as far as names tell."""
    if last.offset is not None and file.index == last.index:
        return None
    index = last.index if last.offset is None else last.index + 1
    return None if file.place == (index, 0) else (index, 0)


def _no_snapshot(
    files: Iterable[GenerationFile], usable: Iterable[GenerationFile], generation: str, timestamp_ms: int | None
) -> ArchiveEmpty | TxidNotAvailable:
    what = f"generation {generation} has WAL segments, but no snapshot to begin with"
    later = [file.timestamp_ms for file in files if file.generation == generation and file.is_snapshot]
    others = [file.timestamp_ms for file in usable if file.generation != generation]
    if others:
        what += f"; the one before it ends at --timestamp {format_moment(max(others))}"
    if timestamp_ms is None or not later:
        return ArchiveEmpty(f"nothing to restore from: {what}")
    return TxidNotAvailable(
        f"the archive cannot restore to {format_moment(timestamp_ms)}: at that time {what}; {_oldest(min(later))}"
    )


def _oldest(timestamp_ms: int) -> str:
    return f"the oldest is {format_moment(timestamp_ms)}"
