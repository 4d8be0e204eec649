"""An archive in a directory, laid out as Litestream's file replica: `ltx/<level>/<min>-<max>.ltx`.

An object is written to a hidden temporary file beside its place, fsynced, renamed, and its folder fsynced. Litestream
takes a file's modification time as the transaction's time, so `put` sets it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from walcast.errors import ConfigError, Corrupt, Unavailable
from walcast.filesystem import fsync_directory, make_directory
from walcast.oserrors import explained
from walcast.store.base import (
    LISTED_MOST,
    WHOLE_MOST_BYTES,
    ListingTooLong,
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    SetAside,
    Versioned,
)
from walcast.store.directory_modes import create_folder, create_object
from walcast.store.directory_swap import VersionFolder
from walcast.store.regular import opened_file, opened_folder, read_small
from walcast.store.swaps import check_size, keeps_to_versions

_COPY_BYTES = 1 << 20
_LEFTOVER_S = 86_400.0
_DEPTH_MOST = 8  # of folders in folders; a generation's are three

# A retry does not help against these: somebody has to change the path, its owner or its mount.
_WRONG_PLACE = {
    errno.EACCES,
    errno.EEXIST,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class DirectoryStore:
    """Objects are files under `root`; folders are made as they are needed."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._has_links: bool | None = None
        self._swaps: bool | None = None
        self._named: set[Path] = set()  # folders whose names are durable

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def __repr__(self) -> str:
        return f"DirectoryStore({self.url!r})"

    def level_prefix(self, level: int) -> str:
        return f"ltx/{level}/"

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(key)
        with self._errors(key), opened_file(self.root, key) as file:
            if length is None:
                return read_small(file, WHOLE_MOST_BYTES, path)[start:]
            # No more is allocated than there is, however much a caller was told to ask for.
            length = min(length, max(0, os.fstat(file.fileno()).st_size - start))
            file.seek(start)
            return file.read(length)

    def chunks(self, key: str, size: int = _COPY_BYTES) -> Iterator[bytes]:
        self._path(key)
        with self._errors(key), opened_file(self.root, key) as file:
            while chunk := file.read(size):
                yield chunk

    def put(self, key: str, body: BinaryIO | bytes, *, timestamp_ms: int, if_absent: bool = False) -> None:
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with self._errors(key), self._made_folder(key) as folder:
            try:
                with open(create_object(self.root, temporary.name, dir_fd=folder), "wb") as file:  # noqa: PTH123 - a descriptor
                    if isinstance(body, bytes):
                        file.write(body)
                    else:
                        shutil.copyfileobj(body, file, _COPY_BYTES)
                    file.flush()
                    # Before the rename: an object is never seen with another time than its own.
                    os.utime(file.fileno(), ns=(timestamp_ms * 1_000_000, timestamp_ms * 1_000_000))
                    os.fsync(file.fileno())
                if if_absent and self.honours_preconditions():
                    self._place(temporary, path, key)
                else:
                    os.replace(temporary.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary.name, dir_fd=folder)
                raise
            os.fsync(folder)

    def honours_preconditions(self) -> bool:
        """Nearly always: only a few file systems have no hard links."""
        if self._has_links is None:
            probe = self.root / f".walcast-probe.{secrets.token_hex(4)}.tmp"
            linked = probe.with_suffix(".link.tmp")
            with self._errors(""):
                self._make_folder(self.root)
                try:
                    os.close(create_object(self.root, probe))
                    linked.hardlink_to(probe)
                    self._has_links = True
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    self._has_links = False
                finally:
                    linked.unlink(missing_ok=True)
                    probe.unlink(missing_ok=True)
        return self._has_links

    def read(self, key: str) -> Versioned | None:
        with self._errors(key):
            return VersionFolder(self._path(key), self.root).read()

    def swap(self, key: str, data: bytes, version: str | None) -> str:
        check_size(data)
        folder = VersionFolder(self._path(key), self.root)
        with self._errors(key):
            if version is None:
                self._make_folder(folder.path.parent)
                written = folder.create(data)
            else:
                written = folder.replace(data, version)
        if written is None:
            raise ObjectChanged(key, self.url)
        return written

    def set_aside(self, key: str) -> SetAside:
        with self._errors(key):
            aside = VersionFolder(self._path(key), self.root).set_aside()
        if aside is None:
            raise ObjectChanged(key, self.url)
        return SetAside(str(aside), None)

    def honours_swaps(self) -> bool:
        """Nearly always: only a few file systems have no hard links."""
        if self._swaps is None:
            key = f".walcast-probe.{secrets.token_hex(4)}.tmp"
            try:
                self._swaps = self.honours_preconditions() and keeps_to_versions(self, key)
            finally:
                shutil.rmtree(self.root / key, ignore_errors=True)
        return self._swaps

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, _, _ = prefix.rpartition("/")
        with self._errors(prefix):
            yield from self._walk(f"{folder}/" if folder else "", prefix)

    def delete(self, keys: Iterable[str]) -> None:
        folders: set[Path] = set()
        for key in keys:
            path = self._path(key)
            *parts, name = key.split("/")
            with self._errors(key), suppress(FileNotFoundError), opened_folder(self.root, parts) as folder:
                os.unlink(name, dir_fd=folder)  # a link itself, never what it leads to
            folders.add(path.parent)
        for path in folders:
            with self._errors(str(path)):
                if path.is_dir():
                    fsync_directory(path)

    def check(self, *, write: bool = True, delete: bool = True) -> None:
        with self._errors(""):
            if write:
                self._make_folder(self.root)
                probe = self.root / f".walcast-check.{secrets.token_hex(4)}.tmp"
                os.close(create_object(self.root, probe))
                probe.unlink()
            elif self.root.exists():
                with os.scandir(self.root) as entries:
                    next(entries, None)
            else:
                raise ConfigError(f"the archive directory {self.root} does not exist: correct the path")

    def tidy(self) -> None:
        with suppress(OSError, Corrupt):
            self._tidy([])
            with opened_folder(self.root, ["ltx"]) as folder:
                levels = [name for name in _names_in(folder) if not name.startswith(".")]
            for level in levels:
                with suppress(OSError, Corrupt):
                    self._tidy(["ltx", level])

    def _tidy(self, parts: Sequence[str]) -> None:
        """One folder, which no link leads to: what a link stands for is nobody's to remove."""
        before_s = time.time() - _LEFTOVER_S
        with opened_folder(self.root, parts) as folder:
            for name in _names_in(folder):
                if not (name.startswith(".") and name.endswith(".tmp")):
                    continue
                with suppress(OSError):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    # Not its modification time, which is that of a transaction.
                    if found.st_ctime >= before_s:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
                    else:
                        os.unlink(name, dir_fd=folder)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, key: str) -> Path:
        if not key or any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"not a key: {key!r}")
        return self.root / key

    def _place(self, temporary: Path, path: Path, key: str) -> None:
        """As rename, but a file that is there already stays: link(2) makes a name, or says that there is one."""
        try:
            path.hardlink_to(temporary)
        except FileExistsError as error:
            # NFS sends a request again whose answer was lost, and then finds the link that the first one made.
            if not path.samefile(temporary):
                raise ObjectExists(key, self.url) from error
        temporary.unlink()

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        if folder.count("/") > _DEPTH_MOST:
            return  # no archive's
        parts = folder.split("/")[:-1]
        try:
            with opened_folder(self.root, parts) as descriptor:
                for name in self._names(descriptor, folder, prefix):
                    if name.endswith("/"):
                        yield from self._walk(folder + name, prefix)
                        continue
                    try:
                        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # removed since the folder was read
                    if stat.S_ISREG(status.st_mode):
                        yield ObjectInfo(folder + name, status.st_size, status.st_mtime_ns // 1_000_000)
        except FileNotFoundError:
            return

    def _names(self, descriptor: int, folder: str, prefix: str) -> Sequence[str]:
        """What is in an open folder and may be, or lead to, an object with that prefix. Links, FIFOs and the like are
        not; of a name with bytes that are no UTF-8 nobody could speak."""
        found = deque[str]()
        with os.scandir(descriptor) as entries:
            for count, entry in enumerate(entries):
                if count >= LISTED_MOST:
                    raise ListingTooLong(folder, self.url)
                name = entry.name
                if name.startswith(".") or name.endswith(".tmp") or not name.isprintable():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    name += "/"  # a folder sorts as its name with the slash, as S3 sorts whole keys
                    if not prefix.startswith(folder + name) and not (folder + name).startswith(prefix):
                        continue
                elif not entry.is_file(follow_symlinks=False) or not (folder + name).startswith(prefix):
                    continue
                found.append(name)
        return sorted(found)

    def _make_folder(self, folder: Path) -> None:
        """Have the folder, by a durable name. One that is found below the root may have been made by a process that was
        killed before it had synced the name, so each is synced once."""
        try:
            make_directory(self.root, parents=True)
        except FileNotFoundError as error:  # of an object this would say that it is missing
            raise Unavailable(f"the archive directory {self.root} cannot be made: {explained(error)}") from error
        parts = folder.relative_to(self.root).parts
        for depth, part in enumerate(parts):
            with opened_folder(self.root, parts[:depth]) as above, suppress(FileExistsError):
                create_folder(self.root, part, dir_fd=above)
        while folder != self.root and folder not in self._named:
            fsync_directory(folder.parent)
            self._named.add(folder)
            folder = folder.parent

    @contextmanager
    def _made_folder(self, key: str) -> Iterator[int]:
        """The key's folder, open: what is put there goes into this one, whatever its name leads to by then. NotAnObject
        where a link stands for one of its folders: an object would be written elsewhere."""
        *parts, _ = key.split("/")
        self._make_folder(self.root.joinpath(*parts))
        with opened_folder(self.root, parts) as folder:
            yield folder

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Translate what the file system says into what the caller must do."""
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissing(key, self.url) from error
        except OSError as error:
            at = error.filename if isinstance(error.filename, str) else key
            named = "" if at in ("", str(self.root)) else f" ({at})"
            if error.errno == errno.ENOTDIR and self.root.is_file():
                raise ConfigError(f"the archive {self.root} is a file: give the directory of an archive") from error
            what = f"the archive directory {self.root} cannot be used{named}: {explained(error, at or self.root)}"
            if error.errno in _WRONG_PLACE:
                raise ConfigError(what) from error
            raise Unavailable(what) from error


def _names_in(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, LISTED_MOST)]
