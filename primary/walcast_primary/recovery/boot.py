"""Which start of the machine a primary last ran under, and which file it served.

Only a machine that went down can have lost what was written and not synced. So where the content of a database is all
that there is to go by, an older state is taken for the work of a power cut only if the machine was started since and
the file is still the same one; otherwise somebody put it there on purpose.

`app.db-walcast/boot`: the kernel's boot id; device, inode and the inode's generation of the database; inode and its
generation of the WAL, a line each.
The generation tells a file from another one that was given its inode after it was removed. The boot id goes when a
primary has ended and has synced the database: a power cut can take nothing back then of what the log has.
"""

from __future__ import annotations

import fcntl
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from walcast.filesystem import write_durably

NAME = "boot"

_GET_GENERATION = 0x80087601  # FS_IOC_GETVERSION of linux/fs.h, on 64 bits
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Boot:
    """`boot_id` is empty and `generation` 0 where the system does not tell; `boot_id` also where a power cut can take
    nothing back of what the log has."""

    boot_id: str
    file: tuple[int, int]
    generation: int = 0
    wal: int = 0
    wal_generation: int = 0

    @classmethod
    def now(cls, db_fd: int, wal_fd: int | None = None) -> Boot:
        """The present one, for an open database."""
        try:
            boot_id = _BOOT_ID.read_text().strip()
        except OSError:
            boot_id = ""
        facts = os.fstat(db_fd)
        wal = (os.fstat(wal_fd).st_ino, _generation(wal_fd)) if wal_fd is not None else (0, 0)
        return cls(boot_id, (facts.st_dev, facts.st_ino), _generation(db_fd), *wal)

    def has_wal_of_another(self, last: Boot | None) -> bool:
        """Is the WAL still the one that it was when `last` was written, and the database another file? Where both were
        copied to another place, neither is the same, though a new file system may give them the numbers that they had:
        then the generations differ, or where the system tells none, the device."""
        if last is None or self.wal != last.wal or not self.wal or self._is_file_of(last):
            return False
        if self.wal_generation and last.wal_generation:
            return self.wal_generation == last.wal_generation
        return self.file[0] == last.file[0]

    def lost_power_since(self, last: Boot | None) -> bool:
        """May a power cut have taken back what stood in this file when `last` was written?"""
        return last is not None and bool(last.boot_id) and self.boot_id != last.boot_id and self._is_file_of(last)

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
        lines = (state_dir / NAME).read_text().split("\n")
        boot_id, device, inode, generation, wal, wal_generation = [*lines[:6], "", ""][:6]
        return Boot(boot_id, (int(device), int(inode)), int(generation), int(wal or 0), int(wal_generation or 0))
    except (OSError, ValueError):
        return None


def write_boot(state_dir: Path, boot: Boot) -> None:
    """Durably. The log must be durable up to where the database stands."""
    if read_boot(state_dir) == boot:
        return
    facts = (boot.boot_id, *boot.file, boot.generation, boot.wal, boot.wal_generation)
    write_durably(state_dir / NAME, "".join(f"{fact}\n" for fact in facts).encode())


def forget_boot(state_dir: Path) -> None:
    """Durably. All that the log has must be durable in the database. Which files they are is still known."""
    last = read_boot(state_dir)
    if last is not None:
        write_boot(state_dir, replace(last, boot_id=""))
