"""The segments of a log as they lie on disk: those that continue each other, up to what is no record any more."""

from __future__ import annotations

from pathlib import Path

from walcast_primary.transaction_log.segment import SUFFIX, Segment


def load_segments(directory: Path) -> tuple[list[Segment], int]:
    """The newest contiguous run, and the highest TXID that was given and cannot be read, 0 when there is none.

    Older segments that do not connect are deleted, and empty ones, unless they are the evidence of such a TXID.
    """
    found: list[Segment] = []
    lost_txid = 0
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        segment = Segment.load(path)
        _check_contiguous(segment)
        lost_txid = max(lost_txid, segment.lost_txid)
        last = found[-1].entry(-1) if found else None
        if not len(segment):
            if not segment.lost_txid:  # evidence of TXIDs that were given stays until `start` has saved
                path.unlink()
            continue
        first = segment.entry(0)
        if last and (first.min_txid, first.pre_checksum) != (last.max_txid + 1, last.post_checksum):
            for older in found:
                older.path.unlink()
            found.clear()
        found.append(segment)
    if found and not lost_txid:
        found[-1].seal()
    return found, lost_txid


def delete_segments(directory: Path) -> None:
    """Every one."""
    for path in directory.glob(f"*{SUFFIX}"):
        path.unlink()


def _check_contiguous(segment: Segment) -> None:
    for i in range(1, len(segment)):
        follows = segment.min_txids[i] == segment.max_txids[i - 1] + 1
        if not follows or segment.pre_checksums[i] != segment.post_checksums[i - 1]:
            segment.cut(i)
            return
