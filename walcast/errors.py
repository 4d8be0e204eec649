"""What can go wrong, sorted by what the caller must do next.

    WalcastError
    ├── ConfigError        fix what was asked for: a path, a flag, a file, a URL; nothing was changed
    ├── Unavailable        try again later: the other side, the store or the lock is not there now
    │   └── StaleReplica   the replica has not applied the token in time
    ├── Diverged           the copy is not the primary's at its position: copy again, only the pages that differ
    ├── LostContinuity     what was read so far no longer connects with what is there: compare all pages
    ├── Corrupt            bytes from disk or network that are not what they claim: quarantine, read another copy
    └── Stopped            stop writing now: the database was replaced under us, or another node took over

Every error prints as one line; facts are typed fields.
"""

from __future__ import annotations


class WalcastError(Exception):
    """The root: anything walcast raises on purpose."""


class ConfigError(WalcastError):
    """What was asked for cannot work; nothing was changed."""


class Unavailable(WalcastError):
    """Not now: worth trying again."""


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
