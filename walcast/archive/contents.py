"""What an archive holds: its levels, its snapshots, to which TXIDs and times it restores, and what is missing.

The listing tells all but the times; those come from the headers of the files at the ends of what is reported, a small
request each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from walcast.archive.files import LEVELS, SNAPSHOT_LEVEL, ArchiveFile, list_files, restorable_txids
from walcast.archive.generations import GenerationFile, list_generations
from walcast.archive.reading import read_headers
from walcast.ltx import Header
from walcast.store.base import Store

_SNAPSHOTS_MAX = 100  # whose headers are read


@dataclass(frozen=True, slots=True)
class Hole:
    """TXIDs that no file has, from the first to the last missing."""

    first_txid: int
    last_txid: int


@dataclass(frozen=True, slots=True)
class End:
    """A TXID and the time of its commit, ms; None where the header of its file cannot be read."""

    txid: int
    timestamp_ms: int | None


@dataclass(frozen=True, slots=True)
class Level:
    """The files of one level. `first` is that of the oldest file: the last TXID of it, and its time."""

    level: int
    files: int
    bytes: int
    min_txid: int
    first: End
    last: End
    holes: tuple[Hole, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One file of the snapshot level."""

    file: ArchiveFile
    timestamp_ms: int | None


@dataclass(frozen=True, slots=True)
class Range:
    """An unbroken stretch of TXIDs that the archive restores to, in `states` steps."""

    first: End
    last: End
    states: int


@dataclass(frozen=True, slots=True)
class Contents:
    """`restorable` ascends; between two ranges, and after the last one up to `newest_txid`, nothing can be restored."""

    levels: tuple[Level, ...]
    snapshots: tuple[Snapshot, ...]
    restorable: tuple[Range, ...]
    newest_txid: int
    files: tuple[ArchiveFile, ...]
    generations: tuple[GenerationFile, ...] = ()

    @property
    def holes(self) -> tuple[Hole, ...]:
        """Stretches that cannot be restored, from the oldest restorable TXID to the newest one there is."""
        stretches = [Hole(a.last.txid + 1, b.first.txid - 1) for a, b in pairwise(self.restorable)]
        reached = self.restorable[-1].last.txid if self.restorable else 0
        if reached < self.newest_txid:
            stretches.append(Hole(reached + 1, self.newest_txid))
        return tuple(hole for hole in stretches if hole.first_txid <= hole.last_txid)


def contents_of(store: Store, levels: Iterable[int] = LEVELS) -> Contents:
    """List an archive; what Litestream 0.3 wrote is listed where there are no LTX files."""
    files = list_files(store, levels)
    if not files:
        return Contents((), (), (), 0, (), tuple(list_generations(store)))
    by_level = {level: list(found) for level, found in groupby(files, key=lambda file: file.level)}
    chains = restorable_ranges(files)
    ending = {file.max_txid: file for file in files}
    snapshots = by_level.get(SNAPSHOT_LEVEL, [])[-_SNAPSHOTS_MAX:]
    times = _Times(store)
    times.read(file for found in by_level.values() for file in _ends(found))
    times.read(snapshots)
    times.read(ending[txid] for chain in chains for txid in (chain[0], chain[-1]))
    return Contents(
        tuple(_level(level, found, times) for level, found in by_level.items()),
        tuple(Snapshot(file, times.of(file)) for file in snapshots),
        tuple(Range(times.end(ending[chain[0]]), times.end(ending[chain[-1]]), len(chain)) for chain in chains),
        max(ending),
        tuple(files),
    )


def holes_between(files: Iterable[ArchiveFile]) -> tuple[Hole, ...]:
    """What is missing between the files of one level."""
    holes: list[Hole] = []
    reached: int | None = None
    for file in sorted(files, key=lambda file: file.min_txid):
        if reached is not None and file.min_txid > reached + 1:
            holes.append(Hole(reached + 1, file.min_txid - 1))
        reached = max(reached or 0, file.max_txid)
    return tuple(holes)


def restorable_ranges(files: Sequence[ArchiveFile]) -> list[list[int]]:
    """The TXIDs that can be restored, in stretches: a new one begins where only a snapshot leads further."""
    ranges: list[list[int]] = []
    leading: dict[int, int] = {}  # last TXID → the first one of the longest file that leads to it
    for file in files:
        if not file.is_snapshot:
            leading[file.max_txid] = min(leading.get(file.max_txid, file.min_txid), file.min_txid)
    for txid in restorable_txids(files):
        if ranges and leading.get(txid, txid + 1) <= ranges[-1][-1] + 1:
            ranges[-1].append(txid)
        else:
            ranges.append([txid])
    return ranges


def _ends(files: Sequence[ArchiveFile]) -> tuple[ArchiveFile, ArchiveFile]:
    return min(files, key=lambda file: file.max_txid), max(files, key=lambda file: file.max_txid)


def _level(level: int, files: Sequence[ArchiveFile], times: _Times) -> Level:
    first, last = _ends(files)
    size, min_txid = sum(file.size for file in files), min(file.min_txid for file in files)
    return Level(level, len(files), size, min_txid, times.end(first), times.end(last), holes_between(files))


class _Times:
    """Times from headers, each read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, int | None] = {}

    def read(self, files: Iterable[ArchiveFile]) -> None:
        """Read the headers of these."""
        unknown = {file.key: file for file in files if file.key not in self._known}
        for key, header in zip(unknown, read_headers(self._store, list(unknown.values())), strict=True):
            self._known[key] = header.timestamp_ms if isinstance(header, Header) else None

    def of(self, file: ArchiveFile) -> int | None:
        """Of a file that was read."""
        return self._known[file.key]

    def end(self, file: ArchiveFile) -> End:
        """Where a file that was read ends."""
        return End(file.max_txid, self._known[file.key])
