"""One folder of `discarded/`: written beside its place and renamed when it is durable; found again, and listed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.discarded.summary import Summary
from walcast.discarded.words import words
from walcast.errors import DiskFull, Unavailable
from walcast.filesystem import fsync_directory, make_directory
from walcast.moment import parse_moment
from walcast.permissions import create_file
from walcast.position import format_txid
from walcast.shortage import reason, shortage
from walcast.statedir import state_dir

log = logging.getLogger("walcast.discarded")

NAME = "discarded"
SUMMARY = "summary.json"
WORDS = "summary.txt"
TEMPORARY = ".tmp"
KEPT_MOST = 1000  # of one database; nobody deletes them but people

_FOLDER = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-term(\d+)(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Discarded:
    """A folder that is there. `why` is empty, the numbers zero, where its summary cannot be read any more."""

    path: Path
    min_txid: int
    max_txid: int
    term: int
    kind: str = ""
    why: str = ""
    identity: str = ""
    kept_at_ms: int = 0
    files: int = 0
    pages: int = 0
    bytes: int = 0

    @property
    def is_whole(self) -> bool:
        """Are all its files still there, each as long as it was written in all?"""
        try:
            sizes = [file.stat().st_size for file in self.path.glob("*.ltx")]
        except OSError:
            return False
        return (len(sizes), sum(sizes)) == (self.files, self.bytes) and (self.path / WORDS).is_file()


def list_discarded(database: Path) -> list[Discarded]:
    """What was ever kept of this database and not deleted by anybody, by TXID. Unavailable when it cannot be read."""
    return _list(state_dir(database))


def find_discarded(state: Path, identity: str) -> Discarded | None:
    """The whole folder in which this was kept before (`Summary.identity`). `state` is the state folder."""
    return next((found for found in _list(state) if found.identity == identity and found.is_whole), None)


def _list(state: Path) -> list[Discarded]:
    try:
        paths = sorted((state / NAME).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(f"{state / NAME}: cannot be read: {error.strerror}; correct its permissions") from error
    return [_read(path, match) for path in paths if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()]


def _read(path: Path, match: re.Match[str]) -> Discarded:
    min_txid, max_txid, term = int(match[1], 16), int(match[2], 16), int(match[3])
    try:
        facts = json.loads((path / SUMMARY).read_bytes())
        return Discarded(
            path,
            min_txid,
            max_txid,
            term,
            kind=str(facts["kind"]),
            why=str(facts["why"]),
            identity=str(facts["identity"]),
            kept_at_ms=parse_moment(facts["kept_at"]),
            files=int(facts["files"]),
            pages=int(facts["distinct_pages"]),
            bytes=int(facts["bytes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Discarded(path, min_txid, max_txid, term)


class Saving:
    """A folder that is being written, in a `with`; without `finish` nothing of it stays.

    Everything is durable when `finish` returns. Disk errors are Unavailable.
    """

    def __init__(self, state: Path, min_txid: int, max_txid: int, summary: Summary) -> None:
        """`state` is the state folder, of which only one process at a time may be the owner."""
        self._root = state / NAME
        self._name = f"{format_txid(min_txid)}-{format_txid(max_txid)}-term{summary.term}"
        self._temporary = self._root / f"{self._name}{TEMPORARY}"
        self._summary = summary

    def __enter__(self) -> Self:
        with self._disk():
            make_directory(self._root)
            self._check_count()
            for leftover in self._root.glob(f"*{TEMPORARY}"):  # of a process that was killed
                shutil.rmtree(leftover)
            make_directory(self._temporary)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _check_count(self) -> None:
        """A primary that has its follower leave its history again and again fills no disk with what that loses."""
        kept = sum(_FOLDER.fullmatch(name) is not None for name in os.listdir(self._root))  # noqa: PTH208 - names
        if kept >= KEPT_MOST:
            raise Unavailable(
                f"{self._root} holds {kept:,} folders, more than any node should have lost: the database is not "
                "overwritten before somebody has looked at what is in them and removed them, and at the primary"
            )

    def add(self, header: ltx.Header, write: Callable[[BinaryIO], NDArray[np.uint32]]) -> None:
        """A file: `write` writes it and answers the pages that are in it."""
        path = self._temporary / ltx.format_filename(header.min_txid, header.max_txid)
        with self._disk():
            size, pgnos = _durably(path, write)
        self._summary.add(header, pgnos, size)

    def finish(self) -> Discarded:
        """Put it in its place, with its summaries."""
        facts = self._summary.facts()
        with self._disk():
            place = self._place()
            _durably(self._temporary / SUMMARY, _text(json.dumps(facts, indent=1) + "\n"))
            _durably(self._temporary / WORDS, _text(words(facts, str(place.absolute()))))
            fsync_directory(self._temporary)
            self._temporary.rename(place)
            fsync_directory(self._root)
            fsync_directory(self._root.parent)
        match = _FOLDER.fullmatch(place.name)
        assert match is not None
        kept = _read(place, match)
        log.warning("kept what only this node had", extra=_fields(facts, kept))
        return kept

    def _place(self) -> Path:
        """The folder's own name, or one beside it when another state was kept under that, or parts of it are gone."""
        place, number = self._root / self._name, 1
        while place.exists():
            number += 1
            place = self._root / f"{self._name}.{number}"
        return place

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = shortage(error, self._root)
            if isinstance(full, DiskFull):
                detail = "make room there: what only this node had is kept before the database is overwritten"
                raise DiskFull(self._root, detail, free_bytes=full.free_bytes, reason=reason(error)) from error
            raise full or Unavailable(
                f"{self._root}: cannot keep what only this node had: {error.strerror}; make room or "
                "correct permissions there, the database is not overwritten before"
            ) from error


def _durably(path: Path, write: Callable[[BinaryIO], NDArray[np.uint32]]) -> tuple[int, NDArray[np.uint32]]:
    with open(create_file(path, os.O_WRONLY), "wb") as file:  # noqa: PTH123 - a descriptor
        answer = write(file)
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), answer


def _text(text: str) -> Callable[[BinaryIO], NDArray[np.uint32]]:
    def write(file: BinaryIO) -> NDArray[np.uint32]:
        file.write(text.encode())
        return np.zeros(0, np.uint32)

    return write


def _fields(facts: dict[str, Any], kept: Discarded) -> dict[str, Any]:
    names = [tree["name"] for tree in facts["tables"] if tree["name"]]
    return {
        "database": facts["database"],
        "reason": facts["why"],
        "folder": str(kept.path),
        "kind": kept.kind,
        "min_txid": facts["min_txid"],
        "max_txid": facts["max_txid"],
        "term": kept.term,
        "files": kept.files,
        "pages": kept.pages,
        "bytes": kept.bytes,
        "tables": names[:10],
    }
