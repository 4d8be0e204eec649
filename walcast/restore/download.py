"""The files of a plan as one sequence of bytes, cut into pieces of some MiB that threads fetch a bounded way ahead.

The threads belong to a `with` statement and not to a generator: one that an error leaves suspended would be closed by
the garbage collector, at any moment and in any thread, and joining threads there can deadlock with one being started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from walcast.archive.damage import DamagedFile
from walcast.archive.files import ArchiveFile
from walcast.store.base import Store

PIECE_BYTES = 4 << 20
_WAITING_MAX = 4096  # of small files

F = TypeVar("F", bound=ArchiveFile)


def pieces_of(files: Iterable[F]) -> Iterator[tuple[F, int, int]]:
    """File, start and length of each piece, in order; an empty file is one empty piece."""
    for file in files:
        for start in range(0, max(file.size, 1), PIECE_BYTES):
            yield file, start, min(PIECE_BYTES, file.size - start)


def window_bytes(requests: int) -> int:
    """How much may be in memory: what is being fetched and a little more."""
    return (requests + 4) * PIECE_BYTES


@contextmanager
def downloading(store: Store, files: Sequence[F], parallelism: int) -> Iterator[Iterator[tuple[F, bytes, bool]]]:
    """Every piece of every file, in order, and whether it is its file's last.

    At most `parallelism` requests at once, the first of them at once, and `window_bytes` in memory. What the store
    raises comes where the piece would; a file that is shorter than listed is a DamagedFile.
    """
    with ThreadPoolExecutor(parallelism, thread_name_prefix="walcast-download") as pool:
        window = _Window(store, files, window_bytes(parallelism), pool)
        try:
            window.fill()
            yield window.pieces()
        finally:
            window.cancel()


class _Window(Generic[F]):
    """The pieces that are being fetched or wait to be taken."""

    def __init__(self, store: Store, files: Sequence[F], bytes_max: int, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._pool = pool
        self._free_bytes = bytes_max
        self._waiting: deque[tuple[F, int, int, Future[bytes]]] = deque()
        self._left = pieces_of(files)

    def fill(self) -> None:
        """Ask for as many pieces as there is room for."""
        while self._free_bytes > 0 and len(self._waiting) < _WAITING_MAX:
            if (piece := next(self._left, None)) is None:
                return
            file, start, length = piece
            self._free_bytes -= length
            self._waiting.append((file, start, length, self._pool.submit(self._store.get, file.key, start, length)))

    def pieces(self) -> Iterator[tuple[F, bytes, bool]]:
        """Each in its turn."""
        while self._waiting:
            file, start, length, future = self._waiting.popleft()
            data = future.result()
            if len(data) != length:
                raise DamagedFile(file, f"ends at byte {start + len(data)} of {file.size}")
            yield file, data, start + length >= file.size
            self._free_bytes += length
            self.fill()

    def cancel(self) -> None:
        """Ask for no more."""
        for *_, future in self._waiting:
            future.cancel()
