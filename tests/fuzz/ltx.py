"""LTX files, in pieces, as a follower and a restore read them, and their page index; what was written is read again."""

from __future__ import annotations

import lz4.frame

from walcast.checksum import page_checksum
from walcast.errors import Corrupt
from walcast.ltx import Decoder, Encoder, Header, Page, Trailer, decode_page_index, page_index_size
from walcast.ltx.header import FLAG_NO_CHECKSUM
from walcast.position import CHECKSUM_FLAG
from walcast.restore.pages import Batch, FilePages

SHORT = 1500
PAGE = 512


def a_file(header: Header, pages: dict[int, bytes], post: int = 0) -> bytes:
    out = bytearray()
    encoder = Encoder(header, out.extend)
    for pgno, page in pages.items():
        encoder.add(pgno, page)
    encoder.finish(post)
    return bytes(out)


def some_files() -> list[bytes]:
    """A snapshot, a transaction, one without checksums, an empty one, one whose page is an LZ4 frame."""
    pages = {n: bytes([n]) * 300 + bytes(PAGE - 300) for n in range(1, 5)}
    total = CHECKSUM_FLAG
    for pgno, page in pages.items():
        total = (total ^ page_checksum(pgno, page)) | CHECKSUM_FLAG
    facts = {"page_size": PAGE, "timestamp_ms": 1_700_000_000_000}
    snapshot = Header(commit_pages=4, min_txid=1, max_txid=1, **facts)  # type: ignore[arg-type]
    one = Header(commit_pages=9, min_txid=2, max_txid=3, pre_checksum=total, term=1, **facts)  # type: ignore[arg-type]
    bare = Header(commit_pages=9, min_txid=2, max_txid=2, flags=FLAG_NO_CHECKSUM, **facts)  # type: ignore[arg-type]
    frame = lz4.frame.compress(pages[2], content_checksum=True)
    at = a_file(bare, {2: pages[2]})
    framed = at[:100] + (2).to_bytes(4, "big") + bytes(2) + frame + at[-40:]
    return [
        a_file(snapshot, pages, total),
        a_file(one, {3: pages[3], 8: pages[1]}, total),
        a_file(bare, {2: pages[2]}),
        a_file(one, {}, total),
        framed,
    ]


def seeds() -> list[bytes]:
    return [bytes([cut]) + data for data in some_files() for cut in (0, 37, 255)]


def target(data: bytes) -> None:
    step, data = 1 + data[0] * 8 if data else 1, data[1:]
    refused: Corrupt | None = None
    found, size = list[tuple[int, bytes]](), 0
    try:
        found, size = _decode(data, step)
    except Corrupt as error:
        refused = error
    _in_bulk(data, step, found, whole=size == len(data) > 0)
    try:
        _index(data)
    except Corrupt:
        pass
    if refused is not None:
        raise refused


def _in_bulk(data: bytes, step: int, found: list[tuple[int, bytes]], *, whole: bool) -> None:
    """As a restore reads it: the same pages."""
    pages: list[tuple[int, bytes]] = []

    def keep(header: Header, batch: Batch) -> None:
        assert all(0 < pgno <= header.commit_pages for pgno in batch.pgnos)
        assert all(len(page) == header.page_size for page in batch.pages)
        pages.extend(zip(batch.pgnos.tolist(), batch.pages, strict=True))

    reader = FilePages(keep)
    try:
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
        reader.finish()
    except Corrupt:
        assert not whole, "only the restore refuses it"
        return
    assert not whole or pages == found


def _decode(data: bytes, step: int) -> tuple[list[tuple[int, bytes]], int]:
    """The pages, and the size of the file."""
    decoder = Decoder()
    header: Header | None = None
    pages: list[Page] = []
    size = 0
    for at in range(0, len(data), step):
        decoder.feed(data[at : at + step])
        while (event := decoder.next_event()) is not None:
            if isinstance(event, Header):
                header = event
            elif isinstance(event, Page):
                assert header is not None
                assert len(event.data) == header.page_size
                assert 0 < event.pgno <= header.commit_pages
                pages.append(event)
            else:
                assert header is not None
                _again(header, pages, event)
                size = event.size
    decoder.close()
    return [(page.pgno, page.data) for page in pages], size


def _again(header: Header, pages: list[Page], trailer: Trailer) -> None:
    """What was whole can be written again, and is the same."""
    out = bytearray()
    encoder = Encoder(header, out.extend)
    for page in pages:
        encoder.add(page.pgno, page.data)
    again = Decoder()
    encoder.finish(trailer.post_checksum)
    again.feed(out)
    assert again.next_event() == header
    for page in pages:
        event = again.next_event()
        assert isinstance(event, Page)
        assert (event.pgno, event.data) == (page.pgno, page.data)
    assert isinstance(again.next_event(), Trailer)


def _index(data: bytes) -> None:
    tail = data[-4096:]
    size = page_index_size(tail)
    if size > len(data):
        return
    for offset, stored in decode_page_index(data[-size:]).values():
        assert offset >= 100
        assert stored > 6
