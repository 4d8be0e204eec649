"""A status file being written, or made anew, as something to wait for: one inotify instance, or none.

The folder is watched for a new file, and while there is no folder the one above it for a new folder. A user has 128
instances by default, and to close one may take the kernel ten milliseconds: whoever is done with one keeps it for the
next.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from walcast.statusfile import status_path

if TYPE_CHECKING:
    from inotify_simple import INotify

# inotify(7)
IN_MODIFY = 0x002
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
READ_BYTES = 1 << 16

_EVENT = struct.Struct("iIII")


class StatusWatch:
    """Of the database at this path. `fd` becomes readable with a change; None: there is no inotify, so poll."""

    def __init__(self, database: Path) -> None:
        self._file = status_path(database)
        self._inotify = _open_inotify()
        self.fd = self._inotify.fileno() if self._inotify is not None else None
        self._watched: dict[Path, int] = {}
        self._written = b""
        self.arm()

    def __del__(self) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def arm(self) -> None:
        """Watch what is there now. What happened before is not told: look after it."""
        folder = self._file.parent
        # From above: what is made after it was not there to be watched is told by what it is made in.
        if not self._watch(folder, IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF):
            self._watch(folder.parent, IN_CREATE | IN_MOVED_TO)
            self._watch(folder, IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF)
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
        if self._inotify is None:
            return False
        before = self._watched.get(path)
        try:
            now: int = self._inotify.add_watch(path, mask)
        except OSError:
            self._forget(path)
            return False
        if before is not None and before != now:
            self._forget(path)
        self._watched[path] = now
        return True

    def _forget(self, path: Path) -> None:
        watched = self._watched.pop(path, None)
        if watched is not None and self._inotify is not None:
            try:
                self._inotify.rm_watch(watched)
            except OSError:
                pass  # it went with its file


def _open_inotify() -> INotify | None:
    try:
        from inotify_simple import INotify

        return INotify(nonblocking=True)
    except (ImportError, OSError):
        return None
