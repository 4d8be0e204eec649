"""Send a copy of the database, or of the pages in which another copy differs, without a point in time.

Each piece is read in a short read transaction of its own, at some state from `start` on, so writers and the WAL never
wait for the receiver. Every page that changed after it was read is in the stream between `start` and `end`: whoever
applies that on top, before showing anything, has the database at `end` or later. The log is pinned meanwhile.

A receiver behind a slow line may take longer than the log is kept, pinned or not. So it gets further rounds: the page
checksums of the log tell which pages have changed since they were sent, and only those are sent, with a start of their
own. Each round is shorter than the one before, as long as the line carries more than the app changes, and none has to
read the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

import lz4.block
import numpy as np
from numpy.typing import NDArray

from walcast import wire
from walcast.checksum import lock_pgno, page_checksum
from walcast.rpc import replication_pb2 as pb
from walcast_primary.capture.capture_thread import Captured
from walcast_primary.database import Database
from walcast_primary.transaction_log.transaction_log import TransactionLog

PIECE_BYTES = 1 << 20
MESSAGE_BYTES = 64 << 10  # a receiver must get one within ten seconds, however slow its line is
PIN_SECONDS = 30.0
LOOK_S = 0.1
ROUNDS_MOST = 20
ROUND_FACTOR = 2  # a round is worth it whose pages are so many times smaller than the log that it saves

T = TypeVar("T")
Read = Callable[[int, int], memoryview]


async def copy_pages(database: Database, theirs: bytes, *, rounds: bool = False) -> AsyncGenerator[pb.CopyReply, None]:
    """Start, the pages whose checksums are not in `theirs` (little-endian u64, page 1 first), end. With `rounds` more
    starts, and pages, may come before the end."""
    log = database.log
    held = _Held(np.frombuffer(theirs, "<u8", len(theirs) // 8).astype(np.uint64))
    with ExitStack() as stack:
        stack.enter_context(log.pin())
        read = stack.enter_context(database.reading())
        start = await asyncio.wrap_future(database.loop.barrier())
        yield _start(database, start)
        held.reserve(start.commit_pages)
        step = max(1, PIECE_BYTES // database.page_size)
        for first in range(1, start.commit_pages + 1, step):
            count = min(step, start.commit_pages + 1 - first)
            pages = await _in_thread(partial(read, first, count))
            for message in await _in_thread(partial(_differing, database.page_size, first, pages, held)):
                yield pb.CopyReply(pages=message)
        for _ in range(ROUNDS_MOST if rounds else 0):
            now = await asyncio.wrap_future(database.loop.barrier())
            pgnos = held.changed(log, now.commit_pages)
            log_bytes = log.bytes_after(start.position.txid)
            if log_bytes is not None and ROUND_FACTOR * len(pgnos) * database.page_size >= log_bytes:
                break
            start = now
            yield _start(database, start)
            held.reserve(start.commit_pages)
            for at in range(0, len(pgnos), step):
                some = pgnos[at : at + step]
                for message in await _in_thread(partial(_changed, read, database.page_size, some, held)):
                    yield pb.CopyReply(pages=message)
        end = await asyncio.wrap_future(database.loop.barrier())
        yield pb.CopyReply(end=pb.CopyEnd(position=wire.position_message(end.position, log.term)))
        # The log stays pinned until the receiver, whose stream at `start` has begun, cancels the call.
        for _ in range(int(PIN_SECONDS / LOOK_S)):
            if database.leaving:
                return
            await asyncio.sleep(LOOK_S)


async def _in_thread(work: Callable[[], T]) -> T:
    """In a thread, which has ended when this ends: whoever hangs up in the middle of a piece does not have the
    connection closed that is being read from, which would fail, and leave it open."""
    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([working])
        working.exception()  # nobody is left to be told
        raise


class _Held:
    """The page checksums of what the receiver has once it has taken everything that was sent."""

    def __init__(self, sums: NDArray[np.uint64]) -> None:
        self.sums = sums

    def reserve(self, pages: int) -> None:
        if pages > len(self.sums):
            self.sums = np.concatenate([self.sums, np.zeros(pages - len(self.sums), np.uint64)])

    def changed(self, log: TransactionLog, commit_pages: int) -> list[int]:
        """The pages of a database of `commit_pages`, whose commits are all in the log, that it does not have."""
        assert log.checksums is not None
        self.reserve(commit_pages)
        now = log.checksums.pages[:commit_pages].copy()  # pages that change meanwhile are in the stream
        return (np.flatnonzero(now != self.sums[: len(now)]) + 1).tolist()


def _start(database: Database, start: Captured) -> pb.CopyReply:
    return pb.CopyReply(
        start=pb.CopyStart(
            position=wire.position_message(start.position, database.log.term),
            page_size=database.page_size,
            commit_pages=start.commit_pages,
            database_id=database.id or "",
        )
    )


def _changed(read: Read, size: int, pgnos: list[int], held: _Held) -> list[pb.CopyPages]:
    """These pages, each as it is now; runs of them are read at once."""
    messages: list[pb.CopyPages] = []
    first = 0
    for i, pgno in enumerate(pgnos):
        if i + 1 == len(pgnos) or pgnos[i + 1] != pgno + 1:
            messages += _differing(size, pgnos[first], read(pgnos[first], i + 1 - first), held)
            first = i + 1
    return messages


def _differing(size: int, first: int, pages: memoryview, held: _Held) -> list[pb.CopyPages]:
    """Those of the pages from `first` on that differ, as messages; the last one says how far the copy has come."""
    theirs = held.sums
    messages: list[pb.CopyPages] = []
    pgnos: list[int] = []
    blocks: list[bytes] = []
    bytes_held = 0
    for pgno in range(first, first + len(pages) // size):
        page = pages[(pgno - first) * size : (pgno - first + 1) * size]
        if pgno == lock_pgno(size):
            continue
        checksum = page_checksum(pgno, page)
        if theirs[pgno - 1] == checksum:
            continue
        theirs[pgno - 1] = checksum
        block = lz4.block.compress(page, store_size=False)
        if bytes_held + len(block) > MESSAGE_BYTES:
            messages.append(_message(pgnos, blocks, pgno - 1))
            pgnos, blocks, bytes_held = [], [], 0
        pgnos.append(pgno)
        blocks.append(block)
        bytes_held += len(block)
    messages.append(_message(pgnos, blocks, first - 1 + len(pages) // size))
    return messages


def _message(pgnos: list[int], blocks: list[bytes], scanned_pages: int) -> pb.CopyPages:
    return pb.CopyPages(
        pgnos=pgnos, sizes=[len(b) for b in blocks], blocks=b"".join(blocks), scanned_pages=scanned_pages
    )
