"""The databases in a folder: which files match, and which of them are SQLite databases. Reads only.

Patterns are Go's (`path/filepath.Match`), so that one means the same to Litestream: `*`, `?`, `[a-z]`, `[^a-z]` and a
backslash before what shall stand for itself, for the file's name alone. Other than Litestream, hidden files and folders
are left alone (unless the pattern itself begins with a dot), and so are SQLite's, walcast's and editors' side files.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from walcast.errors import ConfigError
from walcast.filesystem import SQLITE_MAGIC
from walcast_node.process.open_inodes import Inodes

SETTLE_S = 2.0
_SIDE_FILES = ("-wal", "-shm", "-journal", "-walcast", "-litestream", ".tmp", "~")
_HEADER_BYTES = 100
_RANGE = r"(\\.|[^\\-])(?:-(\\.|[^\\-]))?"


class Kind(Enum):
    """What a file that matches is."""

    DATABASE = "a SQLite database"
    EMPTY = "nothing yet: it gets its first page with the first commit"
    UNFINISHED = "a database that is being copied there"
    OTHER = "no database"


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern. ConfigError when it is none."""
    if not pattern or "/" in pattern:
        raise ConfigError(f"{pattern!r} is not a pattern for file names, as in '*.db'")
    parts = re.findall(r"\\.|\[\^?(?:\\.|[^\]\\])+\]|[^\\\[]|[\\\[]", pattern, re.DOTALL)
    out: list[str] = []
    for part in parts:
        if part == "*":
            out.append(".*")
        elif part == "?":
            out.append(".")
        elif part in ("\\", "["):
            raise ConfigError(f"{pattern!r} is not a pattern: {part!r} without what belongs to it")
        elif part.startswith("[") and len(part) > 1:
            out.append(_character_class(pattern, part))
        else:
            out.append(re.escape(part[-1]))
    return re.compile("".join(out), re.DOTALL)


def _character_class(pattern: str, part: str) -> str:
    """`[a-z]` or `[^a-z]`, in which a backslash takes the next character as it is."""
    negated = part.startswith("[^")
    text = part[2 if negated else 1 : -1]
    if not re.fullmatch(rf"(?:{_RANGE})+", text, re.DOTALL):
        raise ConfigError(f"{pattern!r} is not a pattern: a '-' in brackets stands between two characters")
    ranges: list[str] = []
    for low, high in re.findall(_RANGE, text, re.DOTALL):
        if high and low[-1] > high[-1]:
            raise ConfigError(f"{pattern!r} is not a pattern: nothing is between {low[-1]!r} and {high[-1]!r}")
        ranges.append(re.escape(low[-1]) + (f"-{re.escape(high[-1])}" if high else ""))
    return f"[{'^' if negated else ''}{''.join(ranges)}]"


def is_pattern(name: str) -> bool:
    """Does a file name have any of the characters that make it a pattern?"""
    return any(character in name for character in "*?[")


def look(path: Path, inodes: Inodes, now_s: float) -> Kind:
    """What is at `path`, links followed. `now_s` is the time of day."""
    try:
        # This descriptor is of a kind whose close does no harm to anybody's locks.
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return Kind.OTHER
    try:
        facts = os.fstat(place)
        if not stat.S_ISREG(facts.st_mode):
            return Kind.OTHER
        with inodes.not_held((facts.st_dev, facts.st_ino)) as free:
            if not free:
                return Kind.DATABASE
            head = _head(place)
    except OSError:
        return Kind.OTHER
    finally:
        os.close(place)
    if not any(head[: len(SQLITE_MAGIC)]):
        return Kind.EMPTY
    if head[: len(SQLITE_MAGIC)] != SQLITE_MAGIC[: len(head)]:
        return Kind.OTHER
    settled = facts.st_mtime < now_s - SETTLE_S
    return Kind.DATABASE if settled or _is_whole(path, head, facts.st_size) else Kind.UNFINISHED


def _head(place: int) -> bytes:
    fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _HEADER_BYTES)
    finally:
        os.close(fd)


def _is_whole(path: Path, head: bytes, size: int) -> bool:
    """As long as its header says (sqlite.org/fileformat2.html, "In-header database size"), or with a WAL to say so."""
    if len(head) < _HEADER_BYTES:
        return False
    page_size = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[28:32], "big") if head[24:28] == head[92:96] else 1
    if size >= pages * (65536 if page_size == 1 else page_size):
        return True
    try:
        return path.with_name(path.name + "-wal").stat().st_size > 0
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder has now. `waiting` may become databases; `folders` are all that were looked into."""

    databases: tuple[Path, ...] = ()
    waiting: tuple[tuple[Path, Kind], ...] = ()
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Folder:
    """Where to look, and for what. `dir` is absolute."""

    dir: Path
    pattern: str
    recursive: bool = False
    _regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_regex", compile_pattern(self.pattern))

    def matches(self, name: str) -> bool:
        """May a file of this name be one of the databases?"""
        if name.endswith(_SIDE_FILES) or (name.startswith(".") and not self.pattern.startswith(".")):
            return False
        return self._regex.fullmatch(name) is not None

    def has(self, path: Path) -> bool:
        """Would a database at this path be one of this folder's?"""
        if not path.is_relative_to(self.dir) or not self.matches(path.name):
            return False
        parents = path.relative_to(self.dir).parts[:-1]
        return not parents or (self.recursive and all(map(is_looked_into, parents)))

    def relative(self, path: Path) -> str:
        """The path of one of its files below `dir`, as Litestream appends it to the archive's place."""
        return path.relative_to(self.dir).as_posix()

    def scan(self, inodes: Inodes) -> Found:
        """Look at all files; those that this process holds are not opened. OSError when `dir` cannot be read.

        A link to a file counts as the file, unless that is found by itself.
        """
        now_s = time.time()
        databases: list[Path] = []
        links: list[Path] = []
        waiting: list[tuple[Path, Kind]] = []
        folders: list[Path] = []
        for entry in self._entries(self.dir, folders):
            path = Path(entry.path)
            kind = look(path, inodes, now_s)
            if kind is Kind.DATABASE:
                (links if entry.is_symlink() else databases).append(path)
            elif kind is not Kind.OTHER:
                waiting.append((path, kind))
        real = {path.resolve() for path in databases} if links else set()
        for path in sorted(links):
            target = path.resolve()
            if target not in real:
                real.add(target)
                databases.append(path)
        return Found(tuple(sorted(databases)), tuple(waiting), tuple(folders))

    def _entries(self, folder: Path, folders: list[Path]) -> Iterator[os.DirEntry[str]]:
        """The entries that match, here and below. A folder below that cannot be read has none."""
        folders.append(folder)
        with os.scandir(folder) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
        for entry in here:
            if self.recursive and entry.is_dir(follow_symlinks=False):
                if is_looked_into(entry.name):
                    try:
                        yield from self._entries(Path(entry.path), folders)
                    except OSError:
                        continue
            elif self.matches(entry.name):
                yield entry


def is_looked_into(name: str) -> bool:
    """May a folder of this name have databases?"""
    return not name.startswith(".") and not name.endswith(_SIDE_FILES)
