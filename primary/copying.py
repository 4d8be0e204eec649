"""Send a copy of the database, or of the pages in which another copy differs, without a point in time.

Each piece is read in a short read transaction of its own, at some state from `start` on, so writers and the WAL never
wait for the receiver. Every page that changed after it was read is in the stream between `start` and `end`: whoever
applies that on top, before showing anything, has the database at `end` or later. The log is pinned meanwhile.
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

from primary.database import Database
from walcast import wire
from walcast.checksum import lock_pgno, page_checksum
from walcast.rpc import replication_pb2 as pb

PIECE_BYTES = 1 << 20
MESSAGE_BYTES = 64 << 10  # a receiver must get one within ten seconds, however slow its line is
PIN_SECONDS = 30.0
LOOK_S = 0.1

T = TypeVar("T")


async def copy_pages(database: Database, theirs: bytes) -> AsyncGenerator[pb.CopyReply, None]:
    """Start, the pages whose checksums are not in `theirs` (little-endian u64, page 1 first), end."""
    log = database.log
    checksums = np.frombuffer(theirs, "<u8", len(theirs) // 8).astype(np.uint64)
    with ExitStack() as stack:
        stack.enter_context(log.pin())
        read = stack.enter_context(database.reading())
        start = await asyncio.wrap_future(database.loop.barrier())
        yield pb.CopyReply(
            start=pb.CopyStart(
                position=wire.position_message(start.position, log.term),
                page_size=database.page_size,
                commit_pages=start.commit_pages,
                database_id=database.id or "",
            )
        )
        step = max(1, PIECE_BYTES // database.page_size)
        for first in range(1, start.commit_pages + 1, step):
            count = min(step, start.commit_pages + 1 - first)
            pages = await _in_thread(partial(read, first, count))
            for message in await _in_thread(partial(_differing, database.page_size, first, pages, checksums)):
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


def _differing(size: int, first: int, pages: memoryview, theirs: NDArray[np.uint64]) -> list[pb.CopyPages]:
    """Those of the pages from `first` on that differ, as messages; the last one says how far the copy has come."""
    messages: list[pb.CopyPages] = []
    pgnos: list[int] = []
    blocks: list[bytes] = []
    held = 0
    for pgno in range(first, first + len(pages) // size):
        page = pages[(pgno - first) * size : (pgno - first + 1) * size]
        same = pgno <= len(theirs) and theirs[pgno - 1] == page_checksum(pgno, page)
        if same or pgno == lock_pgno(size):
            continue
        block = lz4.block.compress(page, store_size=False)
        if held + len(block) > MESSAGE_BYTES:
            messages.append(_message(pgnos, blocks, pgno - 1))
            pgnos, blocks, held = [], [], 0
        pgnos.append(pgno)
        blocks.append(block)
        held += len(block)
    messages.append(_message(pgnos, blocks, first - 1 + len(pages) // size))
    return messages


def _message(pgnos: list[int], blocks: list[bytes], scanned_pages: int) -> pb.CopyPages:
    return pb.CopyPages(
        pgnos=pgnos, sizes=[len(b) for b in blocks], blocks=b"".join(blocks), scanned_pages=scanned_pages
    )
