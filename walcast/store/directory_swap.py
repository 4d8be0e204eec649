"""A small object in a directory that changes by compare-and-swap, without a lock: whoever is stopped blocks nobody.

The object is a folder, and each version a file in it, its number as 16 hex digits. The highest number is the object:

    lease/0000000000000007      "3f…a1 90…5c\n" and the data: this version's token, and the token of the one before
    lease/0000000000000008      "d2…07 3f…a1\n" and the data

* To create: a folder that holds number 1 gets its name by rename(2), which fails where a folder is that holds anything.
* To write over n: a synced temporary file gets the name n + 1 by link(2), which fails where it exists. Then n must
  still be there with its token, and nothing higher: only now it counts.
* Whom it counted for removes n - 1 and older, the oldest first; the newest two stay.

Why of all who write over version n at most one succeeds, whoever is stopped for how long, wherever:

1. A token is one attempt's own, and an attempt links once. So a version that was removed never comes back: its name
   may, by a writer that was stopped before its link, but with another token.
2. n + 1 is removed only by somebody who removed n before, or saw it gone. So where n is still there with its token
   after my link, the name n + 1 was never free again before it: mine was the first link of that name, and the only one.
3. Number 1 is never linked, and from its creation on a folder is never empty, so there is one creation.

What a stopped writer left under an old number counts for nobody: a reader takes a version only with the one before it
there, by (2) again, and the next writer removes it. Nothing relies on a listing to be of one moment.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from walcast.filesystem import fsync_directory
from walcast.store.base import ForeignObject, UnsettledObject, Versioned
from walcast.store.directory_modes import create_folder, create_object
from walcast.store.regular import NotAnObject, opened_file, opened_folder, read_small
from walcast.store.swaps import MAX_SWAP_BYTES

_DIGITS = 16
_NONE_BEFORE = "0" * _DIGITS
_HEAD_BYTES = 2 * _DIGITS + 2
_LEFTOVER_S = 86_400.0
_TRIES = 100
_NUMBER_MOST = 1 << 60
_NAMES_MOST = 10_000  # some are there for a moment; each swap removes those before it


@dataclass(frozen=True, slots=True)
class _Version:
    number: int
    token: str
    before: str
    data: bytes

    @property
    def name(self) -> str:
        return f"{self.number:016x}-{self.token}"


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One object. Methods raise OSError as it comes, less what says that somebody else was first.
    `root` is the archive's folder, which says who else may read it."""

    path: Path
    root: Path

    def read(self) -> Versioned | None:
        """The object now; None where there is none. UnsettledObject when it changes faster than it can be read."""
        for _ in range(_TRIES):
            names = self._names()
            if not names:
                return None
            numbers = _numbers_in(names)
            last = self._load(numbers[-1]) if numbers else None
            if last is not None and (last.number == 1 or self._has(last.number - 1, last.before)):
                return Versioned(last.data, last.name)
        if not numbers:  # nothing can be created there either
            raise ForeignObject(f"{self.path} holds files, and none of them is a version of an object of walcast's")
        raise UnsettledObject(
            f"{self.path} changes faster than it can be read; if it stays so while nobody writes, files are missing "
            "in it"
        )

    def set_aside(self) -> Path | None:
        """Rename it, where it cannot be read, and say what its name is now; None where it can be read after all, or is
        gone.

        What was moved is looked at again after the rename, when nobody writes to it any more: it may have become an
        object in between. Then it gets its name back, unless somebody has made another one meanwhile.
        """
        aside = self.path.with_name(f"{self.path.name}.foreign-{secrets.token_hex(4)}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return None
        fsync_directory(self.path.parent)
        try:
            VersionFolder(aside, self.root).read()
        except (ForeignObject, UnsettledObject):
            return aside
        with suppress(OSError):
            aside.rename(self.path)  # a folder with anything in it is not replaced
            fsync_directory(self.path.parent)
        return None

    def create(self, data: bytes) -> str | None:
        """The new version, or None: there is one already. The folder above exists."""
        token = secrets.token_hex(_DIGITS // 2)
        temporary = self.path.with_name(f".{self.path.name}.{token}.tmp")
        create_folder(self.root, temporary)
        try:
            self._write(temporary / _file_name(1), token, _NONE_BEFORE, data)
            fsync_directory(temporary)
            temporary.rename(self.path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_directory(self.path.parent)
        return f"{1:016x}-{token}"

    def replace(self, data: bytes, version: str) -> str | None:
        """The new version, or None: the object is not that version, or no more when ours was written."""
        number, _, before = version.partition("-")
        if not _is_number(number) or not _is_number(before):
            return None  # another store's
        try:
            return self._replace(data, int(number, 16), before)
        except FileNotFoundError:
            return None  # the folder is gone, or what we had begun in it

    def _replace(self, data: bytes, number: int, before: str) -> str | None:
        path = self.path / _file_name(number + 1)
        if path.exists() or not self._has(number, before):
            return None
        token = secrets.token_hex(_DIGITS // 2)
        temporary = self.path / f".{path.name}.{token}.tmp"
        try:
            self._write(temporary, token, before, data)
            path.hardlink_to(temporary)
        except FileExistsError:
            # NFS sends a request again whose answer was lost, and then finds the link that the first one made.
            if not path.samefile(temporary):
                return None
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(self.path)
        # In this order, and after the link: see above.
        numbers = self._numbers()
        if not self._has(number, before) or numbers[-1:] > [number + 1]:
            return None
        self._remove_old([old for old in numbers if old < number])
        return f"{number + 1:016x}-{token}"

    def _write(self, path: Path, token: str, before: str, data: bytes) -> None:
        with open(create_object(self.root, path), "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(f"{token} {before}\n".encode() + data)
            file.flush()
            os.fsync(file.fileno())

    def _load(self, number: int) -> _Version | None:
        path = self.path / _file_name(number)
        try:
            with opened_file(self.path.parent, f"{self.path.name}/{path.name}") as file:
                body = read_small(file, _HEAD_BYTES + MAX_SWAP_BYTES, path)
        except FileNotFoundError:
            return None
        except NotAnObject as error:
            raise ForeignObject(str(error)) from error
        head = body[:_HEAD_BYTES]
        token, space, before = head[:-1].decode("latin-1").partition(" ")
        whole = len(head) == _HEAD_BYTES and head.endswith(b"\n") and space and len(token) == _DIGITS
        if not whole or len(body) > _HEAD_BYTES + MAX_SWAP_BYTES or number > _NUMBER_MOST:
            raise ForeignObject(f"{path} is damaged, or another program's")
        return _Version(number, token, before, body[_HEAD_BYTES:])

    def _has(self, number: int, token: str) -> bool:
        found = self._load(number)
        return found is not None and found.token == token

    def _numbers(self) -> list[int]:
        return _numbers_in(self._names())

    def _names(self) -> list[str]:
        try:
            with opened_folder(self.path.parent, [self.path.name]) as folder, os.scandir(folder) as entries:
                names = [entry.name for entry in islice(entries, _NAMES_MOST + 1)]
        except FileNotFoundError:
            return []
        except NotAnObject as error:
            raise ForeignObject(str(error)) from error
        if len(names) > _NAMES_MOST:
            raise ForeignObject(f"{self.path} holds more than {_NAMES_MOST:,} files")
        return names

    def _remove_old(self, numbers: list[int]) -> None:
        """Oldest first, and none after one that stays. The swap counts already, so nothing here may fail it."""
        with suppress(OSError):
            for number in numbers:
                (self.path / _file_name(number)).unlink(missing_ok=True)
        with suppress(OSError):
            before_s = time.time() - _LEFTOVER_S
            for path in self.path.glob(".*.tmp"):  # of writers that were killed
                if path.stat().st_ctime < before_s:
                    path.unlink(missing_ok=True)


def _file_name(number: int) -> str:
    return f"{number:016x}"


def _numbers_in(names: list[str]) -> list[int]:
    """The versions', in order."""
    return sorted(int(name, 16) for name in names if _is_number(name))


def _is_number(name: str) -> bool:
    return len(name) == _DIGITS and all(digit in "0123456789abcdef" for digit in name)
