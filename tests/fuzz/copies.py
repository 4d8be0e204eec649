"""A copy of a database, as a primary sends it and a follower takes it: nothing is written that it did not announce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lz4.block
from google.protobuf.message import DecodeError

from fuzz.publisher import packed
from fuzz.wal import files
from walcast.checksum import lock_pgno
from walcast.position import CHECKSUM_FLAG
from walcast.rpc import replication_pb2 as pb
from walcast_follower.subscribe.copied_pages import WRITTEN_AT_ONCE_BYTES, Pieces
from walcast_follower.subscribe.message_checks import check_copy_end, check_copy_start

ALLOWED = (DecodeError,)
SHORT = 1500
PAGE = 512
MOST_MESSAGES = 16
MEMORY_BYTES = 4 << 20  # a MiB of pages at once, and their blocks


class _Pages:
    """A target that only looks at what it is given."""

    def __init__(self, page_size: int, commit_pages: int) -> None:
        self._page_size = page_size
        self._commit_pages = commit_pages
        self._last = 0

    def write_pages(self, pgnos: Sequence[int], pages: Sequence[bytes]) -> None:
        assert len(pgnos) == len(pages)
        assert sum(map(len, pages)) <= max(self._page_size, WRITTEN_AT_ONCE_BYTES)
        for pgno, page in zip(pgnos, pages, strict=True):
            assert self._last < pgno <= self._commit_pages
            assert pgno != lock_pgno(self._page_size)
            assert len(page) == self._page_size
            self._last = pgno


def seeds() -> list[bytes]:
    database, _, _ = files(PAGE)
    pages = [database[at : at + PAGE] for at in range(0, len(database), PAGE)] or [bytes(PAGE)]
    position = pb.Position(txid=7, checksum=CHECKSUM_FLAG, term=1)
    begun = pb.CopyReply(start=pb.CopyStart(page_size=PAGE, commit_pages=len(pages), position=position))
    ended = pb.CopyReply(end=pb.CopyEnd(position=position))
    pieces = [_piece(dict(enumerate(pages, 1))), *(_piece({n: page}) for n, page in enumerate(pages, 1))]
    return [packed(0, begun, pieces[0], ended)[1:], packed(0, begun, *pieces[1:4], ended)[1:]]


def _piece(pages: dict[int, bytes]) -> Any:
    blocks = [lz4.block.compress(page, store_size=False) for page in pages.values()]
    said = pb.CopyPages(pgnos=list(pages), sizes=list(map(len, blocks)), blocks=b"".join(blocks), scanned_pages=1)
    return pb.CopyReply(pages=said)


def target(data: bytes) -> None:
    messages = [pb.CopyReply.FromString(part) for part in _parts(data)]
    if not messages or messages[0].WhichOneof("kind") != "start":
        return
    start = messages[0].start
    check_copy_start(start, 0, 1)
    target: Any = _Pages(start.page_size, start.commit_pages)
    pieces = Pieces(target, start, have_pages=0)
    for message in messages[1:]:
        kind = message.WhichOneof("kind")
        if kind == "pages":
            pieces.write(message.pages)
        elif kind == "end":
            check_copy_end(message.end, start)
            return


def _parts(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    while len(data) > 1 and len(found) < MOST_MESSAGES:
        size = int.from_bytes(data[:2], "big")
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found
