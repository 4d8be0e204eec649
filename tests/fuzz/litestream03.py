"""Archives in the layout of Litestream 0.3: the names of a listing, the plan, and the files, restored as a whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lz4.frame

from fuzz.places import folder_in_memory
from fuzz.wal import files, forged
from walcast.archive.generations import GenerationFile, list_generations, plan_generation
from walcast.restore.generations import restore_generation
from walcast.store import ObjectInfo, ObjectMissing

SHORT = 150
FOLDERS: list[Path] = []
A, B = "0123456789abcdef", "fedcba9876543210"
TOKENS = [b"generations/", b"/snapshots/", b"/wal/", b".snapshot.lz4\n", b".wal.lz4\n", b"00000000_00000000", b"\n"]
MOST_RESTORED = 512 << 20
MEMORY_BYTES = 64 << 20  # pieces of 4 MiB, read ahead and decompressed


class Listed:
    """A store of a few objects, by a table of names, sizes and times."""

    url = "file:///archive"

    def __init__(self, objects: dict[str, bytes], times: dict[str, int] | None = None) -> None:
        self._objects = objects
        self._times = times or {}

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for key, data in self._objects.items():
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), self._times.get(key, 1))

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if key not in self._objects:
            raise ObjectMissing(key, self.url)
        data = self._objects[key][start:]
        return data if length is None else data[:length]

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        data = self.get(key)
        for at in range(0, len(data), size):
            yield data[at : at + size]


@contextmanager
def running() -> Iterator[None]:
    level, logger = logging.getLogger("walcast").level, logging.getLogger("walcast")
    logger.setLevel(logging.CRITICAL)
    try:
        with folder_in_memory() as folder:
            FOLDERS[:] = [Path(folder)]
            yield
    finally:
        logger.setLevel(level)


def seeds() -> list[bytes]:
    names = [f"generations/{A}/snapshots/00000000.snapshot.lz4", f"generations/{A}/wal/00000000_00000000.wal.lz4"]
    names += [f"generations/{A}/wal/00000000_00000400.wal.lz4", f"generations/{A}/wal/00000001_00000000.wal.lz4"]
    names += [f"generations/{B}/snapshots/00000002.snapshot.lz4", f"generations/{B}/wal/00000002_00000000.wal.lz4"]
    listing = "\n".join(f"{name} 10 {i}" for i, name in enumerate(names)).encode()
    found = [b"\0" + listing, b"\0" + listing[:150]]
    for size in (512, 1024):
        database, wal, _ = files(size)
        packed = lz4.frame.compress(database, content_checksum=True), lz4.frame.compress(wal, content_checksum=True)
        for kind, (first, second) in ((1, (database, wal)), (2, (database, wal)), (3, packed)):
            found.append(bytes([kind]) + len(first).to_bytes(2, "big") + first + second)
        huge = bytearray(wal)
        huge[36:40] = b"\xff" * 4  # the database's pages after the first frame
        found.append(bytes([2]) + len(database).to_bytes(2, "big") + database + bytes(huge[: 32 + 24 + size]))
    return found


def target(data: bytes) -> None:
    kind = data[:1]
    if kind == b"\0":
        _names(data[1:])
        return
    split = 3 + int.from_bytes(data[1:3], "big")
    first, second = data[3:split], data[split:]
    if kind != b"\3":
        second = forged(second) if kind == b"\2" else second
        first, second = (lz4.frame.compress(part, content_checksum=True) for part in (first, second))
    names = (f"generations/{A}/snapshots/00000000.snapshot.lz4", f"generations/{A}/wal/00000000_00000000.wal.lz4")
    store: Any = Listed(dict(zip(names, (first, second), strict=True)))
    output = FOLDERS[0] / "out.db"
    try:
        restored, _ = restore_generation(store, plan_generation(list_generations(store)), output, parallelism=1)
        assert output.stat().st_size == restored.page_size * restored.commit_pages
    finally:
        assert not output.exists() or output.stat().st_size <= MOST_RESTORED


def _names(data: bytes) -> None:
    sizes: dict[str, bytes] = {}
    times: dict[str, int] = {}
    for line in data.decode("utf-8", "replace").split("\n")[:100]:
        key, _, rest = line.partition(" ")
        sizes[key] = b""
        times[key] = int(rest.split(" ")[-1][:8]) if rest.split(" ")[-1][:8].isdecimal() else 0
    store: Any = Listed(sizes, times)
    found = list_generations(store)
    for timestamp_ms in (None, 3):
        plan: list[GenerationFile] = plan_generation(found, timestamp_ms=timestamp_ms)
        assert plan[0].is_snapshot
