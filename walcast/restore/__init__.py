"""An archive → a database file, all or nothing; and the proof that an archive can be restored.

restoring.py     `restore`: from a target TXID or time to a file in its place
around.py        plans, tried until one holds: around what is damaged or gone
apply.py         one plan → a file
download.py      a plan's files as one sequence of bytes, fetched by threads
pages.py         LTX decoded in bulk. No I/O
writer.py        pages into the file, and the account that proves the database
target.py        the hidden file beside its place, and the rename
division.py      a large restore divided among processes,
parts.py         a snapshot cut into parts that can be decoded in any order. No I/O
workers.py       the processes
crc_parts.py     a checksum from those of parts
generations.py   archives of Litestream 0.3,
wal.py           one WAL of theirs
verify.py        `walcast verify URL`
"""

from walcast.archive.damage import DamagedFile
from walcast.archive.reading import pages_after
from walcast.restore.apply import Progress, Restored, restore_to
from walcast.restore.restoring import IntegrityCheck, Planned, RestoreReport, check_integrity, restore

__all__ = [
    "DamagedFile",
    "IntegrityCheck",
    "Planned",
    "Progress",
    "RestoreReport",
    "Restored",
    "check_integrity",
    "pages_after",
    "restore",
    "restore_to",
]
