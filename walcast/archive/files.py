"""Names and levels in an archive, and the plan of a restore. Planning is pure: listings in, files to apply out.

An archive holds LTX files of contiguous TXID ranges in levels, as Litestream 0.5 lays them out: level 0 as they were
written, 1 to 8 the same transactions compacted into longer ranges, 9 snapshots. A snapshot holds the whole database and
covers TXIDs 1 to its last. The folders' names differ between kinds of store, see `Store.level_prefix`.

A **plan** is a list of files to apply in order: each begins at or before the TXID after the one reached, and goes
beyond it. A file that begins earlier repeats pages that the later ones carry again, so overlap is harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from walcast.errors import ConfigError, Unavailable
from walcast.ltx import format_filename, parse_filename
from walcast.moment import format_moment
from walcast.position import format_txid
from walcast.store.base import LISTED_MOST, ListingTooLong, ObjectInfo, Store

SNAPSHOT_LEVEL = 9
LEVELS = range(SNAPSHOT_LEVEL + 1)
TXID_MOST = (1 << 62) - 1  # no history has so many; the name of a file must not lead one to where TXIDs end


class ArchiveEmpty(ConfigError):
    """Nothing to restore from: no snapshot, and no file that begins at TXID 1."""


class ArchiveGap(Unavailable):
    """Files go on after TXID `have` only from `next_min`; the ones between are missing."""

    def __init__(self, have: int, next_min: int) -> None:
        super().__init__(
            f"the archive has a gap: it reaches TXID {format_txid(have)} and goes on at {format_txid(next_min)}"
        )
        self.have = have
        self.next_min = next_min


class TxidNotAvailable(ConfigError):
    """The archive cannot restore to exactly this TXID or time."""

    def __init__(self, message: str, *, txid: int | None = None, reached: int = 0) -> None:
        super().__init__(message)
        self.txid = txid
        self.reached = reached


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """One LTX file of an archive. `timestamp_ms` is of its last transaction, as well as the listing knows it."""

    level: int
    min_txid: int
    max_txid: int
    size: int
    timestamp_ms: int
    key: str

    @property
    def is_snapshot(self) -> bool:
        """Whether it holds the whole database: only such a file begins at TXID 1."""
        return self.min_txid == 1


def ltx_key(store: Store, level: int, min_txid: int, max_txid: int) -> str:
    """The key of an LTX file in this kind of store."""
    return store.level_prefix(level) + format_filename(min_txid, max_txid)


def list_files(store: Store, levels: Iterable[int] = LEVELS) -> list[ArchiveFile]:
    """The archive's files, by level and TXID; foreign names are ignored.

    One level after the other, from the lowest: what compaction moves up meanwhile is seen below or above, or in both.
    Times are the store's: those of the upload on S3. `walcast.archive.times` reads those of the transactions.
    """
    files: list[ArchiveFile] = []
    for file in iter_files(store, levels):
        if len(files) >= LISTED_MOST:
            raise ListingTooLong("", store.url)
        files.append(file)
    return files


def iter_files(store: Store, levels: Iterable[int] = LEVELS) -> Iterator[ArchiveFile]:
    """As `list_files`, while the listing is read."""
    for level in levels:
        for found in store.list(store.level_prefix(level)):
            if (file := file_of(store, level, found)) is not None:
                yield file


def file_of(store: Store, level: int, found: ObjectInfo) -> ArchiveFile | None:
    """The file that a line of a level's listing names; None for a foreign name."""
    try:
        min_txid, max_txid = parse_filename(found.key.removeprefix(store.level_prefix(level)))
    except ValueError:
        return None
    if max_txid > TXID_MOST:
        return None
    return ArchiveFile(level, min_txid, max_txid, found.size, found.timestamp_ms, found.key)


def plan_restore(
    files: Sequence[ArchiveFile], *, txid: int | None = None, timestamp_ms: int | None = None, after_txid: int = 0
) -> list[ArchiveFile]:
    """What to apply, in order: the newest file that holds the whole database, then what goes on from there.

    To the newest TXID there is, to exactly `txid`, or to the newest transaction not after `timestamp_ms`. With
    `after_txid` = N the chain for a replica that has applied N: no snapshot, and empty when there is nothing newer.

    To go around a file that turned out damaged, plan again without it. (Planning itself needs no second try from an
    older snapshot: what an older one could reach, some file takes past the newest one, and that file is taken.)

    Raises ArchiveEmpty, TxidNotAvailable (no file ends at the target), ArchiveGap (a file on the way is missing).
    """
    if txid is not None and timestamp_ms is not None:
        raise ConfigError("restore to a TXID or to a time, not to both")
    usable = usable_files(files, txid, timestamp_ms)
    start: list[ArchiveFile] = []
    reached = after_txid
    if not after_txid:
        snapshots = [file for file in usable if file.is_snapshot]
        if not snapshots:
            raise _no_start(files, txid, timestamp_ms)
        start = [max(snapshots, key=lambda file: (file.max_txid, file.level, -file.size))]
        reached = start[0].max_txid
    chain = _chain(usable, reached)
    reached = chain[-1].max_txid if chain else reached
    newest = max((file.max_txid for file in usable), default=0)
    goal = txid if txid is not None else newest
    if reached < goal:
        # A gap, unless a file that goes beyond the target spans it: then this archive only has coarser steps left.
        if not any(file.min_txid <= reached + 1 <= file.max_txid for file in files):
            beyond = [file.min_txid for file in files if file.min_txid > reached]
            if beyond:
                raise ArchiveGap(reached, min(beyond))
        if txid is not None:
            raise TxidNotAvailable(
                f"the archive cannot restore to exactly TXID {format_txid(txid)}: the last one before it that it can "
                f"restore is {format_txid(reached)}",
                txid=txid,
                reached=reached,
            )
    return start + chain


def restorable_txids(files: Iterable[ArchiveFile]) -> list[int]:
    """Every TXID that these files can restore to exactly, ascending: the ends of all chains.

    One pass by last TXID: a file leads on from the newest end before its own when it leads on from any.
    """
    ends: list[int] = []
    for file in sorted(files, key=lambda file: (file.max_txid, file.min_txid)):
        if ends and ends[-1] == file.max_txid:
            continue
        if file.is_snapshot or (ends and file.min_txid <= ends[-1] + 1):
            ends.append(file.max_txid)
    return ends


def usable_files(files: Iterable[ArchiveFile], txid: int | None, timestamp_ms: int | None) -> list[ArchiveFile]:
    """The files that do not go beyond a TXID or a time."""
    return [
        file
        for file in files
        if (txid is None or file.max_txid <= txid) and (timestamp_ms is None or file.timestamp_ms <= timestamp_ms)
    ]


def _chain(files: Iterable[ArchiveFile], reached: int) -> list[ArchiveFile]:
    """On from TXID `reached`, each time with the file that extends the range furthest, as long as one does.

    Furthest is best: whatever any other choice could take next, this one can take too or has already passed. One pass
    over the files by first TXID, as in the classic covering of a line with intervals.
    """
    chain: list[ArchiveFile] = []
    ahead = sorted((file for file in files if file.max_txid > reached), key=lambda file: file.min_txid)
    at = 0
    best: ArchiveFile | None = None
    while True:
        while at < len(ahead) and ahead[at].min_txid <= reached + 1:
            if best is None or _better(ahead[at], best):
                best = ahead[at]
            at += 1
        if best is None or best.max_txid <= reached:
            return chain
        chain.append(best)
        reached = best.max_txid


def _better(file: ArchiveFile, than: ArchiveFile) -> bool:
    """Litestream's order: furthest, then the longer range, then the higher level."""
    return (file.max_txid, -file.min_txid, file.level) > (than.max_txid, -than.min_txid, than.level)


def _no_start(
    files: Sequence[ArchiveFile], txid: int | None, timestamp_ms: int | None
) -> ArchiveEmpty | TxidNotAvailable:
    starts = [file for file in files if file.is_snapshot]
    if not starts:
        what = "no LTX files; check its URL"
        if files:
            what = f"{len(files)} LTX files, but no snapshot; take one: walcast snapshot DB URL"
        return ArchiveEmpty(f"nothing to restore from: the archive has {what}")
    if txid is not None:
        first = min(file.max_txid for file in starts)
        return TxidNotAvailable(
            f"TXID {format_txid(txid)} is not in the archive any more: the oldest restorable is {format_txid(first)}",
            txid=txid,
        )
    oldest = format_moment(min(file.timestamp_ms for file in starts))
    asked = format_moment(timestamp_ms or 0)
    return TxidNotAvailable(f"the archive does not reach back to {asked}: its oldest state is of {oldest}")
