"""What is on the list when it is new. `python -m examples.flask_app.seeds app.db` makes such a database."""

from __future__ import annotations

import sqlite3
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from examples.flask_app import store
from examples.flask_app.pictures import Picture

WIDTH, HEIGHT = 96, 136
Colour = tuple[int, int, int]
Pattern = Callable[[int, int], Colour]


def _waves(x: int, y: int) -> Colour:
    crest = (y + (x * (96 - x)) // 160) % 34
    return (226, 214, 186) if crest < 3 else (28, 62 + y // 4, 84 + y // 3)


def _rings(x: int, y: int) -> Colour:
    far = (x - 48) ** 2 + (y - 58) ** 2
    return (236, 196, 120) if far < 500 else (190, 84, 50) if far < 620 or 1300 < far < 1440 else (58, 34, 44)


def _tiles(x: int, y: int) -> Colour:
    x, y = x % 24, y % 24
    return (240, 228, 200) if x + y == 23 or x == y else (96, 110, 72) if x > y else (70, 86, 60)


# Title, author, note, picture; the last one is the newest.
SEEDS: list[tuple[str, str, str, Pattern | None]] = [
    (
        "The Pillow Book",
        "Sei Shōnagon",
        "Lists, a thousand years before the feed: things that quicken the heart, things that are distant though near. "
        "Good for ten minutes before sleep.",
        None,
    ),
    (
        "Invisible Cities",
        "Italo Calvino",
        "Every city turns out to be the same one, told again. Read one a day and do not hurry.",
        _tiles,
    ),
    (
        "Grande Sertão: Veredas",
        "João Guimarães Rosa",
        "Living is very dangerous, he says, and says again. Out loud, or not at all.",
        _rings,
    ),
    (
        "The Book of Disquiet",
        "Fernando Pessoa",
        "An accountant who never leaves the Rua dos Douradores, and sees all of it. Opens well at any page.",
        None,
    ),
    (
        "The Rings of Saturn",
        "W. G. Sebald",
        "A walk along the Suffolk coast that keeps wandering off: herrings, silk, a skull. Bring a map, do not use it.",
        _waves,
    ),
    (
        "Time, Clocks, and the Ordering of Events in a Distributed System",
        "Leslie Lamport",
        "Few pages, and every one of them still true. Read it before you say “at the same time”.",
        None,
    ),
    (
        "A Mathematician's Apology",
        "G. H. Hardy",
        "Short, proud, and sadder each time. Skip the foreword, come back for it.",
        None,
    ),
]  # fmt: skip


def _png(pattern: Pattern) -> bytes:
    """RGB, 8 bits, no filter."""
    rows = b"".join(b"\0" + bytes(part for x in range(WIDTH) for part in pattern(x, y)) for y in range(HEIGHT))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def plant(path: Path, region: str = "") -> None:
    """Make the database; entries that it has already stay alone."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        store.create(db)
        for number, (title, author, note, pattern) in enumerate(SEEDS):
            picture = Picture("image/png", _png(pattern)) if pattern else None
            store.add(db, store.Draft(f"seed-{number}", title, author, note, region), picture, region)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    plant(Path(sys.argv[1]))
