"""A status file being written, or made anew, as something to wait for: one inotify instance, or none.

The folder is watched for a new file, and while there is no folder the one above it for a new folder. A user has 128
instances by default, and to close one may take the kernel ten milliseconds: whoever is done with one keeps it for the
next.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from walcast.statusfile import status_path

# inotify(7)
IN_MODIFY = 0x002
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_FOLDER = IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF
READ_BYTES = 1 << 16

_EVENT = struct.Struct("iIII")
# Loaded with the module. What is imported or looked for by the first wait may be half done in a thread when another one
# forks, and then the child waits for it for ever.
_libc = ctypes.CDLL(None, use_errno=True)


class StatusWatch:
    """Of the database at this path. `fd` becomes readable with a change; None: there is no inotify, so poll."""

    def __init__(self, database: Path) -> None:
        self._file = status_path(database)
        self.fd = _open_inotify()
        self._watched: dict[Path, int] = {}
        self._written = b""
        self.arm()

    def __del__(self) -> None:
        fd, self.fd = getattr(self, "fd", None), None
        if fd is not None:
            os.close(fd)

    def arm(self) -> None:
        """Watch what is there now. What happened before is not told: look after it."""
        folder = self._file.parent
        # From above: what is made after it was not there to be watched is told by what it is made in.
        if not self._watch(folder, IN_FOLDER):
            self._watch(folder.parent, IN_CREATE | IN_MOVED_TO)
            self._watch(folder, IN_FOLDER)
        else:
            self._forget(folder.parent)
        self._watch(self._file, IN_MODIFY)
        self._written = _EVENT.pack(self._watched.get(self._file, -1), IN_MODIFY, 0, 0)

    def clear(self) -> None:
        """Take what was told so far; look after it."""
        if self.fd is None:
            return
        other = False
        try:
            while data := os.read(self.fd, READ_BYTES):
                other = other or data != self._written
        except BlockingIOError:
            pass
        if other:  # another file may be there
            self.arm()

    def _watch(self, path: Path, mask: int) -> bool:
        if self.fd is None:
            return False
        before = self._watched.get(path)
        now: int = _libc.inotify_add_watch(self.fd, os.fsencode(path), mask)
        if now < 0:
            self._forget(path)
            return False
        if before is not None and before != now:
            self._forget(path)
        self._watched[path] = now
        return True

    def _forget(self, path: Path) -> None:
        watched = self._watched.pop(path, None)
        if watched is not None:
            _libc.inotify_rm_watch(self.fd, watched)  # fails when it went with its file


def _open_inotify() -> int | None:
    """None: the system has none, or this user has no more of them."""
    try:
        fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    except AttributeError:
        return None
    return fd if fd >= 0 else None
