"""What an archive is: its files, how they are named and read, what they can be restored to.

files.py         names, levels, listing, and the plan of a restore. Planning is pure
times.py         the files' times, with few requests
reading.py       headers, events, pages of several files
damage.py        what can be wrong with a file
contents.py      what `walcast ls` shows
checks.py        what must hold between files. Pure
generations.py   the archives of Litestream 0.3
"""

from walcast.archive.files import (
    LEVELS,
    SNAPSHOT_LEVEL,
    ArchiveEmpty,
    ArchiveFile,
    ArchiveGap,
    TxidNotAvailable,
    iter_files,
    list_files,
    ltx_key,
    plan_restore,
    restorable_txids,
    usable_files,
)

__all__ = [
    "LEVELS",
    "SNAPSHOT_LEVEL",
    "ArchiveEmpty",
    "ArchiveFile",
    "ArchiveGap",
    "TxidNotAvailable",
    "iter_files",
    "list_files",
    "ltx_key",
    "plan_restore",
    "restorable_txids",
    "usable_files",
]
