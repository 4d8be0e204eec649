"""What must hold between the files of an archive. Pure: what they are and say in, problems and notes out.

A **problem** is anything that costs, or may cost, a transaction. A **note** costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from walcast.archive.contents import holes_between
from walcast.archive.files import ArchiveFile
from walcast.moment import format_moment
from walcast.position import Position, format_txid


@dataclass(frozen=True, slots=True)
class Read:
    """What one file says. Checksums are the database's, before and after it, said or computed; 0 for not known."""

    file: ArchiveFile
    timestamp_ms: int
    page_size: int
    commit_pages: int
    pre_checksum: int
    checksum: int


@dataclass(slots=True)
class Findings:
    """What is found out about an archive; more is added while it is. `unchecked`: what was left out on purpose."""

    url: str
    files: int = 0
    files_read: int = 0
    bytes_read: int = 0
    position: Position | None = None  # restored to
    timestamp_ms: int = 0
    pages: int = 0
    page_size: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check_holes(files: Sequence[ArchiveFile], findings: Findings) -> None:
    """Every level goes from its first TXID to its last; or a snapshot says that the writer began anew behind a hole."""
    snapshots = {file.max_txid for file in files if file.is_snapshot}
    nowhere = holes_between(file for file in files if not file.is_snapshot)
    for level, found in groupby(files, key=lambda file: file.level):
        for hole in holes_between(found):
            text = f"level {level} lacks TXID {format_txid(hole.first_txid)} to {format_txid(hole.last_txid)}"
            if hole.last_txid in snapshots:
                findings.notes.append(f"{text}; a snapshot goes on from there")
            elif any(other.first_txid <= hole.last_txid and other.last_txid >= hole.first_txid for other in nowhere):
                findings.problems.append(text)
            else:
                findings.problems.append(f"{text}; other levels have it")


def check_reads(reads: Sequence[Read], findings: Findings) -> None:
    """Wherever two files speak of the database at one TXID they say the same; times ascend within a level.

    `reads` comes by level.
    """
    findings.problems += _disagreements(reads)
    findings.problems += _page_sizes(reads)
    for _, of_level in groupby(reads, key=lambda read: read.file.level):
        for one, then in pairwise(sorted(of_level, key=lambda read: (read.file.max_txid, read.file.min_txid))):
            if then.timestamp_ms < one.timestamp_ms:
                times = f"{format_moment(then.timestamp_ms)} is before {format_moment(one.timestamp_ms)}"
                findings.notes.append(f"{then.file.key}: its time {times} of the file before it")


def _page_sizes(reads: Sequence[Read]) -> Iterator[str]:
    """A database may get another page size (VACUUM, a backup in its place); then a snapshot begins it anew, and each
    file has pages as those of the snapshot that it continues."""
    snapshots = sorted((read for read in reads if read.file.is_snapshot), key=lambda read: read.file.max_txid)
    ends = [read.file.max_txid for read in snapshots]
    for read in reads:
        if read.file.is_snapshot:
            continue
        first = max(0, bisect_left(ends, read.file.min_txid) - 1)  # the one that is continued, and those within
        for snapshot in snapshots[first : bisect_right(ends, read.file.max_txid)]:
            if snapshot.page_size != read.page_size:
                sizes = f"pages of {read.page_size} bytes, and {snapshot.file.key} has pages of {snapshot.page_size}"
                yield f"{read.file.key}: {sizes}"
                break


def _disagreements(reads: Sequence[Read]) -> Iterator[str]:
    said: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for read in reads:
        if read.checksum:
            said[read.file.max_txid][read.checksum].append(read.file.key)
        if read.pre_checksum:
            said[read.file.min_txid - 1][read.pre_checksum].append(read.file.key)
    for txid, by_checksum in sorted(said.items()):
        if len(by_checksum) > 1:
            texts = [f"{checksum:016x} in {', '.join(keys)}" for checksum, keys in by_checksum.items()]
            yield f"TXID {format_txid(txid)}: files disagree about the database: {'; '.join(texts)}"
