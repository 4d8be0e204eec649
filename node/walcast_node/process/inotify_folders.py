"""inotify on a folder, on all folders below when it is recursive, and on files that may become databases.

Events only say when to look; what there is to do follows from the look. Most are of side files and of no interest.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from inotify_simple import INotify, flags

from walcast_node.process.folders import Folder, Found, is_looked_into

log = logging.getLogger("walcast.primary")

_GONE = flags.DELETE_SELF | flags.MOVE_SELF
_IN_FOLDER = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ONLYDIR | _GONE
_IN_FILE = flags.MODIFY


class Notices:
    """Sets `noticed`, in the event loop it was made in, when it is time to look."""

    def __init__(self, folder: Folder, noticed: asyncio.Event) -> None:
        self._folder = folder
        self._noticed = noticed
        self._watches: dict[Path, int] = {}
        self._files: set[int] = set()
        self._full = False
        self._inotify: INotify | None = None
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            log.warning("no inotify: changes in the folder show late", extra={"error": str(error)})
            return
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._read)

    def watch(self, found: Found) -> bool:
        """These from now on; True when one is watched that was not: what came there before was told of by none."""
        if self._inotify is None:
            return False
        files = {path for path, _ in found.waiting}
        wanted = files | set(found.folders)
        for path in self._watches.keys() - wanted:
            self._forget(path)
        added = [self._add(path, is_file=path in files) for path in sorted(wanted - self._watches.keys())]
        return any(added)

    def _add(self, path: Path, *, is_file: bool) -> bool:
        assert self._inotify is not None
        try:
            watch = self._inotify.add_watch(path, _IN_FILE if is_file else _IN_FOLDER)
        except FileNotFoundError:
            return False
        except OSError as error:
            if not self._full:
                log.warning("cannot watch: changes there show late", extra={"path": str(path), "error": str(error)})
            self._full = True
            return False
        self._watches[path] = watch
        if is_file:
            self._files.add(watch)
        return True

    def _forget(self, path: Path) -> None:
        assert self._inotify is not None
        watch = self._watches.pop(path)
        self._files.discard(watch)
        try:
            self._inotify.rm_watch(watch)
        except OSError:  # it went with what it was on
            pass

    def _read(self) -> None:
        assert self._inotify is not None
        for event in self._inotify.read(timeout=0):
            if event.mask & (flags.IGNORED | flags.MOVE_SELF):
                for path in [path for path, watch in self._watches.items() if watch == event.wd]:
                    self._forget(path)
            if self._matters(event.wd, event.mask, event.name):
                self._noticed.set()

    def _matters(self, watch: int, mask: int, name: str) -> bool:
        if mask & (_GONE | flags.Q_OVERFLOW) or watch in self._files:
            return True
        if mask & flags.ISDIR:
            return self._folder.recursive and is_looked_into(name)
        return self._folder.matches(name)

    def close(self) -> None:
        """No more."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
