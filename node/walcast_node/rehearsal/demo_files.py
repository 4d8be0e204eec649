"""What the demo finds in files: what stock sqlite3 says of them, and which of the app's commits they have."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from walcast import ltx
from walcast.discarded import list_discarded

PIECE_BYTES = 1 << 20

_NUMBER = re.compile(rb"commit (\d{7}): ")


def checkpoint(database: Path) -> None:
    """Everything into the database file; sqlite3.OperationalError when somebody still uses it."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        busy, *_ = db.execute("pragma wal_checkpoint(truncate)").fetchone()
        if busy:
            raise sqlite3.OperationalError(f"{database}: the checkpoint was not complete")


def integrity(database: Path) -> str:
    """What integrity_check says, `ok` or what is wrong."""
    with closing(sqlite3.connect(database)) as db:
        return "; ".join(row[0] for row in db.execute("pragma integrity_check(5)"))


def first_difference(one: Path, other: Path) -> int | None:
    """The offset of the first byte that differs, or where one of the files ends; None when they are equal."""
    at = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(PIECE_BYTES), right.read(PIECE_BYTES)
            if a != b:
                return at + next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            if not a:
                return None
            at += len(a)


def commits_in(database: Path) -> set[int]:
    """The numbers of the app's commits that a database has; somebody may have it open."""
    with closing(sqlite3.connect(database)) as db:
        return {int(number) for (number,) in db.execute("select substr(note, 8, 7) from orders") if int(number)}


def commits_kept(database: Path) -> dict[int, Path]:
    """The numbers of the app's commits on the pages that were kept aside when this database was overwritten, and the
    folder that has each."""
    found: dict[int, Path] = {}
    for folder in list_discarded(database):
        for file in folder.path.glob("*.ltx"):
            _, pages, _ = ltx.decode_file(file.read_bytes())
            found |= {int(number): folder.path for page in pages for number in _NUMBER.findall(page.data)}
    return found
