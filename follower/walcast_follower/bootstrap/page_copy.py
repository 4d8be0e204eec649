"""Make a replica, or bring one up to date, from the primary: the pages that differ, then the stream over them until
they are one state, as one commit. A copy that breaks off is continued: see
`walcast_follower.bootstrap.unfinished_copy`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from walcast import wire
from walcast.discarded import Circumstances
from walcast.errors import ProtocolViolation, Unavailable
from walcast.permissions import OWNER_ONLY
from walcast.rpc import replication_pb2 as pb
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.overwritten_pages import Keeping
from walcast_follower.bootstrap.bootstrap import Progress
from walcast_follower.bootstrap.new_replica import NewFile
from walcast_follower.bootstrap.partial_copy import Stopping, partial_path
from walcast_follower.bootstrap.replacement import replacing
from walcast_follower.bootstrap.replica_identity import ReplicaIdentity
from walcast_follower.bootstrap.unfinished_copy import Unfinished
from walcast_follower.disk_room import check_announced
from walcast_follower.subscribe.copied_pages import Pieces
from walcast_follower.subscribe.copy_collector import Collecting, laid_over
from walcast_follower.subscribe.message_checks import check_copy_end, check_copy_round, said_by
from walcast_follower.subscribe.primary_client import Client, Copy, OtherPageSize
from walcast_follower.subscribe.receiver import Receiver, Target

log = logging.getLogger("walcast.follower")

T = TypeVar("T")

ROUNDS_MOST = 100


async def from_primary(
    client: Client,
    path: Path,
    state_dir: Path,
    applier: Applier | None,
    progress: Progress | None = None,
    *,
    term: int = 0,
    last_mismatched: bool = False,
    keeping: Circumstances | None = None,
    identity: ReplicaIdentity | None = None,
    mode: int = OWNER_ONLY,
    instead_of: Applier | None = None,
    unfinished: Unfinished | None = None,
) -> None:
    """Fetch the pages that differ from the replica's, or all into a new file, and commit them at one position.

    `unfinished`: what an earlier try left, gone on with, and left again if this one breaks off.

    `keeping`: what the replica had in their place goes to `discarded/` first. `identity`: the replica's, which becomes
    that of the primary's database with the commit, where it may; OtherDatabase where it may not. `instead_of`:
    without an applier, into a new file that takes the place of that one's; OtherPageSize says that there is no other
    way.
    """
    client.database_id = identity.asked if identity is not None and not identity.replace else ""
    keeper = Keeping(applier, state_dir, keeping) if applier and keeping else None
    if keeper is not None:
        await keeper.look_up_tables()
    left = unfinished or Unfinished(state_dir)
    page_size = applier.page_size if applier else 0
    base = applier.checksums.pages[: applier.commit_pages] if applier else np.zeros(0, np.uint64)
    try:
        found = await _in_thread(lambda stopping: left.find(page_size, stopping))
        size = page_size or (found.page_size if found is not None else 0)
        sums = laid_over(base, found)
        async with client.copy(size, sums, term=term, last_mismatched=last_mismatched, rounds=True) as copy:
            start = copy.start
            growth_bytes = max(0, start.commit_pages - len(sums)) * start.page_size
            check_announced(partial_path(state_dir, start.page_size), growth_bytes)
            partial = left.begin(start.page_size)
            if partial.pages:
                facts = {"database": str(path), "pages": partial.pages, "of": start.commit_pages}
                log.info("a copy goes on where it broke off", extra=facts)
            made = None if applier else NewFile(path, state_dir, partial, start.commit_pages, mode)
            if made is not None and instead_of is not None:
                made.replacing = functools.partial(replacing, instead_of)
            target: Target | None = keeper or applier or made
            assert target is not None
            collecting = Collecting(partial, base, start.commit_pages, target.term)
            if identity is not None:
                # A new file is durable when it is in its place; before that, what it replaces must not get the new id.
                sync = applier.sync if applier else _nothing if instead_of else None
                target = identity.renaming(target, start.database_id, sync)
            client.database_id = start.database_id  # the stream must be of the same database
            written = await _collect(client, copy, collecting, len(sums), progress)
            left.all_came()

            def finish(stopping: Stopping) -> None:
                collecting.put_into(target, stopping)
                left.discard()

            await _in_thread(finish)
    except OtherPageSize as other:
        left.after(other)
        if applier is None:  # of what an earlier try left; now there is nothing
            raise Unavailable(f"{client.primary}: {other}") from other
        raise
    except BaseException as error:
        left.after(error)
        raise
    finally:
        if unfinished is None:
            left.close()
    facts = {"position": str(target.position), "pages": written, "of": start.commit_pages}
    log.info("copied from the primary", extra=facts)


async def _collect(client: Client, copy: Copy, target: Collecting, have_pages: int, progress: Progress | None) -> int:
    """Everything up to one position; how many pages the copy had."""
    start, written = copy.start, 0
    pieces = Pieces(target, start, have_pages)
    for _ in range(ROUNDS_MOST):
        while (message := await copy.read()).WhichOneof("kind") == "pages":
            with said_by(client.primary):
                pieces.write(message.pages)
            if progress is not None:
                progress(message.pages.scanned_pages * start.page_size, start.commit_pages * start.page_size)
        written += pieces.written
        if message.WhichOneof("kind") != "start":
            break
        with said_by(client.primary):
            check_copy_round(message.start, start)
        have_pages, start = max(have_pages, start.commit_pages), message.start
        check_announced(target.path, max(0, start.commit_pages - have_pages) * start.page_size)
        pieces = Pieces(target, start, have_pages)
    if message.WhichOneof("kind") != "end":
        raise Unavailable(f"{client.primary}: a copy broke off")
    with said_by(client.primary):
        begin, end = wire.position_of(start.position), check_copy_end(message.end, start)
        if begin == end:
            target.commit(start.position.term, begin, start.commit_pages)
    if begin != end:
        await _stream_until(client, target, start, end.txid)
    return written


def _nothing() -> None:
    """Is left to be synced."""


async def _in_thread(work: Callable[[Stopping], T]) -> T:
    """In a thread, which has ended when this ends, so that nobody else uses the replica meanwhile. Whoever cancels this
    has the work stop as soon as it can."""
    stop = threading.Event()
    working = asyncio.ensure_future(asyncio.to_thread(work, stop.is_set))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        stop.set()
        while not working.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([working])
        working.exception()  # nobody is left to be told
        raise


async def _stream_until(client: Client, target: Target, start: pb.CopyStart, txid: int) -> None:
    begin, term = wire.position_of(start.position), start.position.term
    async with client.stream(begin, term, observer=True) as stream:
        if stream.welcome.position.txid < txid:
            position = wire.position_of(stream.welcome.position)
            raise ProtocolViolation(
                f"{client.primary}: a copy ended with TXID {txid}, and the primary is at {position}"
            )
        receiver = Receiver(target, begin, pages=start.commit_pages, term=stream.welcome.term, until=txid)
        while not receiver.done:
            message = await stream.read()
            if message.WhichOneof("kind") == "chunk":
                with said_by(client.primary):
                    receiver.feed(message.chunk.data, message.chunk.ends)
