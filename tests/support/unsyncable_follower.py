"""A follower on a disk that fails: while the file UNSYNCABLE is there, no WAL can be synced. Arguments as `walcast`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from walcast_node.cli import main

fdatasync = os.fdatasync
switch = Path(os.environ["UNSYNCABLE"])


def failing(fd: int) -> None:
    if switch.exists() and Path(f"/proc/self/fd/{fd}").readlink().name.endswith("-wal"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    fdatasync(fd)


os.fdatasync = failing  # type: ignore[assignment]
main()
