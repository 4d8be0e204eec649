"""Files in a state folder: the status, the role, the database's id."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.places import folder_in_memory
from walcast.identity import read_database_id
from walcast.position import Position
from walcast.statusfile import SIZE, State, Status, read_last_status
from walcast.terms import FOLLOWER, PRIMARY, Standing, TermStart, read_standing, write_standing

SHORT = 1500
FOLDERS: list[Path] = []
TOKENS = [
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"[",
    b"{",
    b"[" * 3000,
    b'"primary"',
    b'"follower"',
    b"\\ud800",
]


@contextmanager
def running() -> Iterator[None]:
    with folder_in_memory() as folder:
        FOLDERS[:] = [Path(folder)]
        yield


def seeds() -> list[bytes]:
    status = Status(State.STREAMING, 3, Position(5, 1 << 63), 6, 7, 8, 9, 1, "10.0.0.1:7420", "app", "f", "http://h:1")
    history = (TermStart(1, Position(1, 1 << 63), 1 << 20), TermStart(2, Position(1 << 21, 1 << 63), 1 << 22))
    with TemporaryDirectory() as folder:
        write_standing(Path(folder), Standing(PRIMARY, 3, "10.0.0.1:7420", history, True))
        role = (Path(folder) / "role").read_bytes()
        write_standing(Path(folder), Standing(FOLLOWER, 1))
        other = (Path(folder) / "role").read_bytes()
    found = [b"\0" + status.encode(), b"\1" + status.encode(), b"\2" + role, b"\2" + other, b"\3" + b"9f0c" * 8 + b"\n"]
    unknown, long = bytearray(status.encode()), bytearray(status.encode())
    unknown[12] = 200  # a state that there is not
    long[-600:] = b"\xff" * 600  # texts that go on behind the end
    return [*found, b"\1" + unknown, b"\1" + long[:96] + b"\xff" * 928, b"\2" + b"[" * 100_000]


def target(data: bytes) -> None:
    kind, data, folder = data[:1], data[1:], FOLDERS[0]
    if kind in (b"\0", b"\1"):
        if kind == b"\1":
            body = data[4:SIZE].ljust(SIZE - 4, b"\0")
            data = zlib.crc32(body).to_bytes(4, "little") + body
        (folder / "status").write_bytes(data)
        status = read_last_status(folder)
        status.encode()
        status.is_live(1)
        status.lag_ms(1)
    elif kind == b"\2":
        (folder / "role").write_bytes(data)
        standing = read_standing(folder)
        if standing is not None:
            write_standing(folder, standing)
            assert read_standing(folder) == standing
    else:
        (folder / "database-id").write_bytes(data)
        read_database_id(folder)
