"""What can go wrong, sorted by what the caller must do next.

    WalcastError
    ├── ConfigError        fix what was asked for: a path, a flag, a file, a URL; nothing was changed
    │   └── NotAllowed         this process runs as a user that may not: run it as the one that the message names
    ├── Unavailable        try again later: the other side, the store or the lock is not there now
    │   ├── DiskFull       a disk has no room: free some; walcast gives back what it can, and goes on by itself
    │   ├── Exhausted      no file descriptors, memory or threads are left: raise the limit, or wait
    │   ├── ProtocolViolation  a peer sent what the protocol forbids or what cannot be true: drop its connection
    │   └── StaleReplica   the replica has not applied the token in time
    ├── Diverged           the copy is not the primary's at its position: copy again, only the pages that differ
    ├── LostContinuity     what was read so far no longer connects with what is there: compare all pages
    ├── Corrupt            bytes from disk or network that are not what they claim: quarantine, read another copy
    └── Stopped            stop writing now: the database was replaced under us, or another node took over

Every error prints as one line; facts are typed fields.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


class WalcastError(Exception):
    """The root: anything walcast raises on purpose."""


class ConfigError(WalcastError):
    """What was asked for cannot work; nothing was changed."""


class NotAllowed(ConfigError):
    """The user that this process runs as may not do this; another one may."""


class Unavailable(WalcastError):
    """Not now: worth trying again."""


class DiskFull(Unavailable):
    """`path` cannot be written: its disk, or somebody's quota there, has no room. Bytes are None where not known."""

    def __init__(
        self,
        path: Path | str,
        detail: str = "",
        *,
        free_bytes: int | None = None,
        needed_bytes: int | None = None,
        reason: str = os.strerror(errno.ENOSPC),
    ) -> None:
        known = [] if needed_bytes is None else [f"{needed_bytes:,} bytes are needed"]
        known += [] if free_bytes is None else [f"{free_bytes:,} bytes are free there"]
        room = f" ({', '.join(known)})" if known else ""
        super().__init__(f"{path}: {reason}{room}" + (f"; {detail}" if detail else ""))
        self.path = Path(path)
        self.detail = detail
        self.free_bytes = free_bytes
        self.needed_bytes = needed_bytes


class Exhausted(Unavailable):
    """File descriptors, memory or threads have run out, of this process or of the machine; `path`: while doing what."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)


class ProtocolViolation(Unavailable):
    """A peer sent what the protocol forbids, or what cannot be true. Nothing of it was stored or shown to readers; its
    connection is dropped, and another peer, or the same one later, may do better."""


class StaleReplica(Unavailable):
    """The replica did not reach a position in time."""


class Diverged(WalcastError):
    """A replica's bytes are not its primary's at the position it reports."""


class LostContinuity(WalcastError):
    """The WAL no longer connects with what was captured from it."""


class Corrupt(WalcastError):
    """Bytes that fail their own checksum or break their format."""


class Stopped(WalcastError):
    """Going on would write or publish something wrong."""


class CertificateRefused(WalcastError):
    """A certificate was shown that this node does not take for anybody's; `name` is what it claims, where known."""

    def __init__(self, why: str, name: str = "") -> None:
        super().__init__(why)
        self.name = name
