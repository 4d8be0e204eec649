"""The files of a plan as one sequence of bytes, cut into pieces of some MiB that threads fetch a bounded way ahead.

The threads belong to a `with` statement and not to a generator: one that an error leaves suspended would be closed by
the garbage collector, at any moment and in any thread, and joining threads there can deadlock with one being started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from walcast.archive import ArchiveFile
from walcast.damage import DamagedFile
from walcast.store.base import Store

PIECE_BYTES = 4 << 20

F = TypeVar("F", bound=ArchiveFile)


@contextmanager
def downloading(store: Store, files: Sequence[F], parallelism: int) -> Iterator[Iterator[tuple[F, bytes, bool]]]:
    """Every piece of every file, in order, and whether it is its file's last; an empty file is one empty piece.

    At most `parallelism` requests at once, and twice as many pieces in memory. What the store raises comes where the
    piece would; a file that is shorter than listed is a DamagedFile.
    """
    waiting: deque[tuple[F, int, int, Future[bytes]]] = deque()
    with ThreadPoolExecutor(parallelism, thread_name_prefix="walcast-download") as pool:
        try:
            yield _in_order(store, files, parallelism * 2, pool, waiting)
        finally:
            for *_, future in waiting:
                future.cancel()


def _in_order(
    store: Store,
    files: Sequence[F],
    window: int,
    pool: ThreadPoolExecutor,
    waiting: deque[tuple[F, int, int, Future[bytes]]],
) -> Iterator[tuple[F, bytes, bool]]:
    pieces = (
        (file, start, min(PIECE_BYTES, file.size - start))
        for file in files
        for start in range(0, max(file.size, 1), PIECE_BYTES)
    )
    while True:
        while len(waiting) < window and (piece := next(pieces, None)) is not None:
            file, start, length = piece
            waiting.append((file, start, length, pool.submit(store.get, file.key, start, length)))
        if not waiting:
            return
        file, start, length, future = waiting.popleft()
        data = future.result()
        if len(data) != length:
            raise DamagedFile(file, f"ends at byte {start + len(data)} of {file.size}")
        yield file, data, start + length >= file.size
