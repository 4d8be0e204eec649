"""When to compact, when to take a snapshot, what may go. Pure: what is known of the archive in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ArchivePolicy:
    """How an archive is kept. Durations in seconds.

    `level_intervals_s[i]` is that of level i + 1: what the level below has is compacted into it at every full
    interval. Any moment of the last `retention_s` stays restorable, to the grain of level 1; the last `raw_retention_s` to the
    grain of single uploads. Without `delete` nothing is ever removed.
    """

    level_intervals_s: tuple[float, ...] = (30.0, 300.0, 3600.0)
    snapshot_interval_s: float = DAY_S
    retention_s: float = 7 * DAY_S
    raw_retention_s: float = 300.0
    delete: bool = True
