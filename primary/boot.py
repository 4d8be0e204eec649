"""Which start of the machine a primary last ran under, and which file it served.

Only a machine that went down can have lost what was written and not synced. So where the content of a database is all
that there is to go by, an older state is taken for the work of a power cut only if the machine was started since and
the file is still the same one; otherwise somebody put it there on purpose.

`app.db-walcast/boot`: the kernel's boot id, and device, inode and the inode's generation of the database, a line each.
The generation tells a file from another one that was given its inode after it was removed. `boot` itself goes when a
primary has ended and has synced the database: a power cut can take nothing back then of what the log has.
"""

from __future__ import annotations

import fcntl
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from walcast.filesystem import fsync_directory, write_durably

NAME = "boot"

_GET_GENERATION = 0x80087601  # FS_IOC_GETVERSION of linux/fs.h, on 64 bits
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Boot:
    """`boot_id` is empty and `generation` 0 where the system does not tell."""

    boot_id: str
    file: tuple[int, int]
    generation: int = 0

    @classmethod
    def now(cls, db_fd: int) -> Boot:
        """The present one, for an open database."""
        try:
            boot_id = _BOOT_ID.read_text().strip()
        except OSError:
            boot_id = ""
        facts = os.fstat(db_fd)
        return cls(boot_id, (facts.st_dev, facts.st_ino), _generation(db_fd))

    def lost_power_since(self, last: Boot | None) -> bool:
        """May a power cut have taken back what stood in this file when `last` was written?"""
        return last is not None and self.boot_id != last.boot_id and self._is_file_of(last)

    def _is_file_of(self, last: Boot) -> bool:
        known = self.generation and last.generation
        return self.file[1] == last.file[1] and (not known or self.generation == last.generation)


def _generation(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GET_GENERATION, bytes(8))[:4], sys.byteorder)
    except OSError:
        return 0


def read_boot(state_dir: Path) -> Boot | None:
    """What was written last; None when there is nothing, or nothing that can be read."""
    try:
        boot_id, device, inode, generation = (state_dir / NAME).read_text().split("\n")[:4]
        return Boot(boot_id, (int(device), int(inode)), int(generation))
    except (OSError, ValueError):
        return None


def write_boot(state_dir: Path, boot: Boot) -> None:
    """Durably. The log must be durable up to where the database stands."""
    if read_boot(state_dir) == boot:
        return
    text = f"{boot.boot_id}\n{boot.file[0]}\n{boot.file[1]}\n{boot.generation}\n"
    write_durably(state_dir / NAME, text.encode())


def forget_boot(state_dir: Path) -> None:
    """Durably. All that the log has must be durable in the database."""
    (state_dir / NAME).unlink(missing_ok=True)
    fsync_directory(state_dir)
