from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import lz4.block
import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ltx_forge import crc64, forge, page_entry, stored_block

from walcast.checksum import lock_pgno, page_checksum
from walcast.errors import Corrupt
from walcast.ltx import (
    FLAG_NO_CHECKSUM,
    HEADER_SIZE,
    PAGE_HEADER_SIZE,
    TRAILER_SIZE,
    Decoder,
    Encoder,
    Header,
    Page,
    Trailer,
    decode_file,
    decode_page_index,
    format_filename,
    page_index_size,
    parse_filename,
)
from walcast.position import CHECKSUM_FLAG

U32, U64, I64 = (1 << 32) - 1, (1 << 64) - 1, (1 << 63) - 1
A_CHECKSUM = CHECKSUM_FLAG | 0x1234


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def text(seed: int, size: int) -> bytes:
    return (f"row {seed} of a table | ".encode() * size)[:size]


def snapshot_checksum(pages: dict[int, bytes]) -> int:
    value = 0
    for pgno, page in pages.items():
        value ^= page_checksum(pgno, page)
    return value | CHECKSUM_FLAG


SNAPSHOT = Header(page_size=512, commit_pages=3, min_txid=1, max_txid=1, timestamp_ms=1_700_000_000_000)
CHANGE = Header(
    page_size=512, commit_pages=9, min_txid=2, max_txid=5, timestamp_ms=1_700_000_000_000, flags=FLAG_NO_CHECKSUM
)
THREE = {1: text(1, 512), 2: bytes(512), 3: noise(3, 512)}


@dataclass(frozen=True)
class Case:
    name: str
    header: Header
    pages: dict[int, bytes]
    post_checksum: int = 0


CASES = [
    Case("snapshot", SNAPSHOT, THREE, snapshot_checksum(THREE)),
    Case("snapshot without checksums", replace(SNAPSHOT, max_txid=77, flags=FLAG_NO_CHECKSUM), THREE),
    Case("snapshot of an empty database", replace(SNAPSHOT, commit_pages=0), {}, CHECKSUM_FLAG),
    Case("change", replace(CHANGE, flags=0, pre_checksum=A_CHECKSUM), {2: text(2, 512), 9: noise(9, 512)}, A_CHECKSUM),
    Case("change without checksums", CHANGE, {2: text(2, 512), 9: noise(9, 512)}),
    Case("change without pages, a truncation", CHANGE, {}),
    Case("change to nothing", replace(CHANGE, flags=0, pre_checksum=A_CHECKSUM, commit_pages=0), {}, CHECKSUM_FLAG),
    Case(
        "every field at its largest",
        Header(
            page_size=65536,
            commit_pages=U32,
            min_txid=U64,
            max_txid=U64,
            timestamp_ms=I64,
            flags=FLAG_NO_CHECKSUM,
            wal_offset=I64,
            wal_size=I64,
            wal_salt=(U32, U32),
            node_id=U64,
            database_checksum=U64,
            term=U32,
            wal_cksum=(U32, U32),
        ),
        {1: noise(1, 65536), U32: bytes(65536)},
    ),
    Case("before 1970", replace(CHANGE, timestamp_ms=-1), {1: text(1, 512)}),
]
SAMPLE = CASES[3]

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def encode(case: Case) -> tuple[bytes, Trailer]:
    out = bytearray()
    encoder = Encoder(case.header, out.extend)
    for pgno, page in case.pages.items():
        encoder.add(pgno, page)
    trailer = encoder.finish(case.post_checksum)
    return bytes(out), trailer


def drain(decoder: Decoder) -> Iterator[Header | Page | Trailer]:
    while (event := decoder.next_event()) is not None:
        yield event


def decode_in_pieces(data: bytes, size: int) -> tuple[list[Header | Page | Trailer], bytes]:
    decoder = Decoder()
    events: list[Header | Page | Trailer] = []
    for at in range(0, len(data), size):
        decoder.feed(data[at : at + size])
        events += drain(decoder)
    decoder.close()
    return events, decoder.unused


def content(events: list[Any]) -> tuple[Any, dict[int, bytes], Any]:
    """Header, pages, trailer of a file; leaves out how the pages are compressed."""
    return events[0], {page.pgno: page.data for page in events[1:-1]}, events[-1]


# Round trips


@cases
@pytest.mark.parametrize("trailing", [b"", b"x", bytes(200)], ids=["alone", "a byte after", "zeros after"])
@pytest.mark.parametrize("size", [1, 7, 1 << 30], ids=["byte by byte", "in sevens", "whole"])
def test_what_was_encoded_is_decoded(case: Case, size: int, trailing: bytes) -> None:
    data, trailer = encode(case)
    events, unused = decode_in_pieces(data + trailing, size)
    assert content(events) == (case.header, case.pages, trailer)
    assert trailer.size == len(data)
    assert unused == trailing


@cases
def test_the_header_alone_round_trips(case: Case) -> None:
    encoded = case.header.encode()
    assert len(encoded) == HEADER_SIZE
    assert Header.decode(encoded + b"more") == case.header
    assert Header.decode(encoded[:-1]) is None


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_pages_and_files_may_be_any_buffer(buffer: Callable[[bytes], Any]) -> None:
    out = bytearray()
    encoder = Encoder(SAMPLE.header, out.extend)
    for pgno, page in SAMPLE.pages.items():
        encoder.add(pgno, buffer(page))
    trailer = encoder.finish(SAMPLE.post_checksum)
    header, pages, found = decode_file(buffer(bytes(out)))
    assert (header, {page.pgno: page.data for page in pages}, found) == (SAMPLE.header, SAMPLE.pages, trailer)
    assert list(decode_page_index(buffer(bytes(out)))) == list(SAMPLE.pages)


@cases
def test_a_decoded_block_used_again_gives_the_same_file(case: Case) -> None:
    data, trailer = encode(case)
    header, pages, _ = decode_file(data)
    out = bytearray()
    encoder = Encoder(header, out.extend)
    for page in pages:
        encoder.add_block(page.pgno, memoryview(page.block), memoryview(page.data))
    assert encoder.finish(case.post_checksum) == trailer
    assert out == data


@cases
def test_the_page_index_leads_to_the_pages(case: Case) -> None:
    data, _ = encode(case)
    tail = data[-page_index_size(data[-24:]) :]
    index = decode_page_index(tail)
    assert index == decode_page_index(data)
    assert list(index) == list(case.pages)
    for pgno, (offset, size) in index.items():
        stored_pgno, flags, block_size = struct.unpack_from(">IHI", data, offset)
        assert (stored_pgno, flags, block_size) == (pgno, 1, size - PAGE_HEADER_SIZE - 4)
        block = data[offset + 10 : offset + size]
        assert lz4.block.decompress(block, uncompressed_size=case.header.page_size) == case.pages[pgno]


@st.composite
def files(draw: st.DrawFn) -> Case:
    page_size = draw(st.sampled_from([1 << n for n in range(9, 17)]))
    lock = lock_pgno(page_size)
    near = st.integers(1, 6) | st.integers(lock - 3, lock + 3) | st.integers(1, U32)
    pages = st.builds(lambda make, seed: make(seed, page_size), st.sampled_from([noise, text]), st.integers(0, 99))
    term, salt = draw(st.integers(0, U32)), draw(st.integers(0, U32))
    header = Header(
        page_size=page_size,
        commit_pages=0,
        min_txid=1,
        max_txid=draw(st.integers(1, U64)),
        timestamp_ms=draw(st.integers(-I64, I64)),
        flags=draw(st.sampled_from([0, FLAG_NO_CHECKSUM])),
        wal_offset=32 if salt else 0,
        wal_salt=(salt, salt),
        term=term,
    )
    if draw(st.booleans()) or header.max_txid == 1:
        chosen = {pgno: draw(pages) for pgno in range(1, draw(st.integers(0, 5)) + 1)}
        post_checksum = 0 if header.no_checksum else snapshot_checksum(chosen)
        return Case("", replace(header, commit_pages=len(chosen)), chosen, post_checksum)
    pgnos = sorted(draw(st.sets(near, min_size=1, max_size=5)) - {lock})
    header = replace(
        header,
        commit_pages=max(pgnos, default=0) + 1,
        min_txid=draw(st.integers(2, header.max_txid)),
        pre_checksum=0 if header.no_checksum else A_CHECKSUM,
    )
    if header.commit_pages > U32:
        pgnos, header = pgnos[:-1], replace(header, commit_pages=U32)
    return Case("", header, {pgno: draw(pages) for pgno in pgnos}, 0 if header.no_checksum else A_CHECKSUM)


@given(files(), st.integers(1, 100_000))
def test_any_file_round_trips_in_pieces_of_any_size(case: Case, size: int) -> None:
    data, trailer = encode(case)
    events, _ = decode_in_pieces(data, max(size, len(data) // 200))
    assert content(events) == (case.header, case.pages, trailer)


def test_a_snapshot_of_more_than_1_gib_leaves_out_the_lock_page() -> None:
    lock = lock_pgno(65536)
    assert lock == 16385
    header = Header(
        page_size=65536, commit_pages=lock + 1, min_txid=1, max_txid=2, timestamp_ms=0, flags=FLAG_NO_CHECKSUM
    )
    decoder, page = Decoder(), bytes(65536)
    block = lz4.block.compress(page, store_size=False)
    encoder = Encoder(header, decoder.feed)
    assert list(drain(decoder)) == [header]
    seen = []
    for pgno in (*range(1, lock), lock + 1):
        encoder.add_block(pgno, block, page)
        seen += [event.pgno for event in drain(decoder) if isinstance(event, Page) and event.data == page]
    trailer = encoder.finish()
    assert seen == [*range(1, lock), lock + 1]
    assert list(drain(decoder)) == [trailer]


def test_a_snapshot_that_ends_with_the_lock_page_is_complete_without_it() -> None:
    lock = lock_pgno(65536)
    header = Header(page_size=65536, commit_pages=lock, min_txid=1, max_txid=2, timestamp_ms=0, flags=FLAG_NO_CHECKSUM)
    decoder, page = Decoder(), bytes(65536)
    block = lz4.block.compress(page, store_size=False)
    encoder = Encoder(header, decoder.feed)
    for pgno in range(1, lock):
        encoder.add_block(pgno, block, page)
        assert list(drain(decoder))
    trailer = encoder.finish()
    assert list(drain(decoder)) == [trailer]


# Layout


def test_the_layout_is_the_one_in_the_document() -> None:
    page = bytes(range(256)) * 2
    header = Header(
        page_size=512,
        commit_pages=0x100,
        min_txid=0x1112131415161718,
        max_txid=0x2122232425262728,
        timestamp_ms=0x3132333435363738,
        flags=FLAG_NO_CHECKSUM,
        wal_offset=0x4142434445464748,
        wal_size=0x5152535455565758,
        wal_salt=(0x61626364, 0x71727374),
        node_id=0x8182838485868788,
        database_checksum=0x9192939495969798,
        term=0xA1A2A3A4,
        wal_cksum=(0xB1B2B3B4, 0xC1C2C3C4),
    )
    out = bytearray()
    encoder = Encoder(header, out.extend)
    encoder.add_block(0x81, stored_block(page), page)
    encoder.add_block(0x100, stored_block(page), page)
    encoder.finish()
    head = bytes.fromhex(
        "4c545831 00000002 00000200 00000100 1112131415161718 2122232425262728 3132333435363738 0000000000000000"
        "4142434445464748 5152535455565758 61626364 71727374 8182838485868788"
        "9192939495969798 a1a2a3a4 b1b2b3b4 c1c2c3c4"
    )
    first = bytes.fromhex("00000081 0001 00000203")
    second = bytes.fromhex("00000100 0001 00000203")
    # 0x81, byte 100, 525 bytes; 0x100, byte 625, 525 bytes; 0. The index has 12 bytes.
    end = bytes.fromhex("000000000000 8101 64 8d04 8002 f104 8d04 00 000000000000000c 0000000000000000")
    hashed = head + first + page + second + page + end
    file_checksum = (crc64(hashed) | 1 << 63).to_bytes(8, "big")
    assert out == head + first + stored_block(page) + second + stored_block(page) + end + file_checksum
    assert len(file_checksum) + 8 == TRAILER_SIZE


def test_the_crc_is_the_one_of_go() -> None:
    assert crc64(b"123456789") == 0xB90956C775A41001


def test_header_and_pages_are_written_in_one_piece_each() -> None:
    pieces: list[bytes] = []
    encoder = Encoder(CHANGE, pieces.append)
    encoder.add(2, text(2, 512))
    encoder.add(3, noise(3, 512))
    encoder.finish()
    assert len(pieces) == 4


# Damage


@cases
def test_every_truncation_is_not_complete(case: Case) -> None:
    data, _ = encode(case)
    decoder = Decoder()
    step = max(1, len(data) // 2000)
    for at in range(0, len(data) - 1, step):
        with pytest.raises(Corrupt, match=f"byte {at}: not complete"):
            decoder.close()
        decoder.feed(data[at : min(at + step, len(data) - 1)])
        list(drain(decoder))
    with pytest.raises(Corrupt, match=f"byte {len(data) - 1}: not complete"):
        decoder.close()
    decoder.feed(data[-1:])
    assert len(list(drain(decoder))) == 1
    decoder.close()


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4]], ids=lambda case: case.name)
def test_every_flipped_bit_is_found_or_changes_only_how_a_page_is_compressed(case: Case) -> None:
    """LZ4 has more than one block for a page, and the file checksum is over the page: that is the format."""
    data, _ = encode(case)
    blocks = [range(offset + 10, offset + size) for offset, size in decode_page_index(data).values()]
    whole = decode_file(data)
    unnoticed: list[int] = []
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            header, pages, trailer = decode_file(damaged)
        except Corrupt:
            continue
        unnoticed.append(bit // 8)
        assert (header, trailer) == (whole[0], whole[2])
        assert [(page.pgno, page.data) for page in pages] == [(page.pgno, page.data) for page in whole[1]]
    assert all(any(byte in block for block in blocks) for byte in unnoticed)


@given(files(), st.data())
def test_mangled_files_raise_nothing_but_corrupt(case: Case, data: st.DataObject) -> None:
    mangled = bytearray(encode(case)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mangled) - 1) | st.integers(0, min(130, len(mangled) - 1)))
        mangled[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not mangled:
            return
    try:
        header, pages, _ = decode_file(mangled)
    except Corrupt:
        return
    assert (header, {page.pgno: page.data for page in pages}) == (case.header, case.pages)


@given(st.binary(max_size=300))
def test_bytes_behind_a_good_header_raise_nothing_but_corrupt(junk: bytes) -> None:
    for decode in (decode_file, decode_page_index):
        with pytest.raises(Corrupt):
            decode(CHANGE.encode() + junk)


def test_a_failed_decoder_stays_failed() -> None:
    decoder = Decoder()
    decoder.feed(b"SQLite format 3\0" + bytes(84))
    for _ in range(2):
        with pytest.raises(Corrupt, match="byte 0: not an LTX file"):
            decoder.next_event()
    decoder.feed(encode(SAMPLE)[0])
    with pytest.raises(Corrupt):
        decoder.next_event()
    with pytest.raises(Corrupt):
        decoder.close()
    assert decoder.unused == b""


def test_a_whole_file_has_nothing_after_its_trailer() -> None:
    data, _ = encode(SAMPLE)
    with pytest.raises(Corrupt, match=f"byte {len(data)}: more bytes"):
        decode_file(data + b"\0")


# Forgeries: every checksum is right, the structure is not

PAGE = noise(7, 512)
NO_CHECKSUM_SNAPSHOT = replace(SNAPSHOT, flags=FLAG_NO_CHECKSUM)


def good(pgno: int, page: bytes = PAGE) -> tuple[int, bytes, bytes, bytes]:
    return page_entry(pgno, 1, stored_block(page), page)


def forged_header(**fields: Any) -> bytes:
    encoded = bytearray(CHANGE.encode())
    for at, (form, value) in fields.items():
        struct.pack_into(form, encoded, int(at[3:]), value)
    return bytes(encoded)


def test_the_forger_can_make_a_good_file() -> None:
    header, pages, trailer = decode_file(forge(CHANGE.encode(), [good(2), good(9)]))
    assert header == CHANGE
    assert [page.pgno for page in pages] == [2, 9]
    assert trailer.post_checksum == 0


FORGERIES: dict[str, tuple[bytes, str]] = {
    "magic": (forge(forged_header(at_0=(">4s", b"LTX2")), []), "byte 0: not an LTX file"),
    "unknown flag": (forge(forged_header(at_4=(">I", 3)), []), "header: unknown flags"),
    "page size 0": (forge(forged_header(at_8=(">I", 0)), []), "header: page size 0"),
    "page size 513": (forge(forged_header(at_8=(">I", 513)), []), "header: page size 513"),
    "page size 131072": (forge(forged_header(at_8=(">I", 131072)), []), "header: page size 131072"),
    "min TXID 0": (forge(forged_header(at_16=(">Q", 0)), []), "header: TXIDs from 0"),
    "TXIDs backwards": (forge(forged_header(at_16=(">Q", 6)), []), "header: TXIDs from 6 to 5"),
    "pre-apply checksum with the flag": (forge(forged_header(at_40=(">Q", A_CHECKSUM)), []), "can be none"),
    "no pre-apply checksum": (forge(forged_header(at_4=(">I", 0)), []), "pre-apply checksum 0000000000000000"),
    "negative WAL offset": (forge(forged_header(at_48=(">q", -1)), []), "WAL offset -1"),
    "negative WAL size": (forge(forged_header(at_48=(">q", 1), at_56=(">q", -1)), []), "size -1"),
    "WAL size alone": (forge(forged_header(at_56=(">q", 1)), []), "without a WAL offset"),
    "WAL salt alone": (forge(forged_header(at_68=(">I", 1)), []), "without a WAL offset"),
    "database checksum": (forge(forged_header(at_80=(">Q", 1)), []), "database checksum 0000000000000001"),
    "page 0": (forge(CHANGE.encode(), [good(0)]), "byte 100: page 0 where"),
    "page past the end": (forge(CHANGE.encode(), [good(10)]), "byte 100: page 10 where one from 1 to 9"),
    "page twice": (forge(CHANGE.encode(), [good(2), good(2)]), "byte 625: page 2 where one from 3 to 9"),
    "pages backwards": (forge(CHANGE.encode(), [good(3), good(2)]), "byte 625: page 2 where one from 4 to 9"),
    "lock page": (
        forge(replace(CHANGE, commit_pages=lock_pgno(512) + 5).encode(), [good(lock_pgno(512))]),
        "byte 100: page 2097153 is the lock page",
    ),
    "snapshot without page 1": (forge(NO_CHECKSUM_SNAPSHOT.encode(), [good(2)]), "page 2 of a snapshot where page 1"),
    "snapshot with a gap": (forge(NO_CHECKSUM_SNAPSHOT.encode(), [good(1), good(3)]), "byte 625: page 3 of a snapshot"),
    "snapshot cut short": (forge(NO_CHECKSUM_SNAPSHOT.encode(), [good(1), good(2)]), "ends before page 3 of 3"),
    "unknown page flag": (forge(CHANGE.encode(), [page_entry(2, 3, stored_block(PAGE), PAGE)]), "unknown flags 0x3"),
    "empty block": (forge(CHANGE.encode(), [page_entry(2, 1, b"", PAGE)]), "in a block of 0 bytes"),
    "block too large": (forge(CHANGE.encode(), [page_entry(2, 1, bytes(531), PAGE)]), "in a block of 531 bytes"),
    "block of less than a page": (
        forge(CHANGE.encode(), [page_entry(2, 1, lz4.block.compress(bytes(511), store_size=False), PAGE)]),
        "page 2 has 511 bytes, not 512",
    ),
    "block of more than a page": (
        forge(CHANGE.encode(), [page_entry(2, 1, lz4.block.compress(bytes(513), store_size=False), PAGE)]),
        "byte 100: LZ4 block",
    ),
    "no frame": (forge(CHANGE.encode(), [page_entry(2, 0, stored_block(PAGE), PAGE)]), "not an LZ4 frame"),
    "frame of less than a page": (
        forge(CHANGE.encode(), [page_entry(2, 0, lz4.frame.compress(bytes(511)), PAGE)]),
        "page 2 has 511 bytes, not 512",
    ),
    "frame of more than a page": (
        forge(CHANGE.encode(), [page_entry(2, 0, lz4.frame.compress(bytes(5000)), PAGE)]),
        "LZ4 frame: does not end with its page",
    ),
    "frame of blocks without end": (
        forge(CHANGE.encode(), [page_entry(2, 0, lz4.frame.compress(PAGE)[:15] + b"\1\0\0\x80x" * 999, PAGE)]),
        "LZ4 frame: more than 16 blocks",
    ),
    "frame of a block without end": (
        forge(CHANGE.encode(), [page_entry(2, 0, lz4.frame.compress(PAGE)[:15] + b"\xff\xff\xff\x7f", PAGE)]),
        "LZ4 frame: longer than a page can be",
    ),
    "index without a page": (forge(CHANGE.encode(), [good(2)], index=b"\0"), "byte 625: the page index .* 631"),
    "index of another page": (forge(CHANGE.encode(), [good(2)], index=b"\3\x64\x8d\4\0"), "differs at byte 631"),
    "index with a longer number": (forge(CHANGE.encode(), [good(2)], index=b"\2\xe4\0\x8d\4\0"), "at byte 632"),
    "post-apply checksum with the flag": (forge(CHANGE.encode(), [], post_checksum=A_CHECKSUM), "can be none"),
    "no post-apply checksum": (
        forge(replace(CHANGE, flags=0, pre_checksum=A_CHECKSUM).encode(), []),
        "post-apply checksum 0000000000000000 without",
    ),
    "snapshot with another's post-apply checksum": (
        forge(SNAPSHOT.encode(), [good(pgno, page) for pgno, page in THREE.items()], post_checksum=A_CHECKSUM),
        f"post-apply checksum {A_CHECKSUM:016x}, but the pages have {snapshot_checksum(THREE):016x}",
    ),
    "nothing left, with a checksum of something": (
        forge(replace(CASES[6].header).encode(), [], post_checksum=A_CHECKSUM),
        "but the pages have 8000000000000000",
    ),
    "file checksum": (forge(CHANGE.encode(), [])[:-1] + b"\0", "file checksum .* but the file has"),
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
@pytest.mark.parametrize("size", [1, 1 << 30], ids=["byte by byte", "whole"])
def test_a_forgery_is_corrupt_and_says_what_and_where(forgery: tuple[bytes, str], size: int) -> None:
    data, message = forgery
    with pytest.raises(Corrupt, match=message) as caught:
        decode_in_pieces(data + bytes(2000), size)
    assert str(caught.value).startswith("LTX file, byte ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (bytes(23), "23 bytes are no tail"),
        (bytes(24), "has no end"),
        (b"\1" + bytes(7) + b"\1" + bytes(16), "has no end"),
        (bytes(7) + b"\1" + bytes(16), "25 bytes from the end, of which 24 are here"),
        (b"\xff" * 11 + bytes(7) + b"\x0b" + bytes(16), "more than 64 bits"),
        (b"\2\x64\7\2\x6b\7\0" + bytes(7) + b"\7" + bytes(16), "page 2 with 7 bytes at byte 107"),
        (b"\2\x64\7\3\x6c\7\0" + bytes(7) + b"\7" + bytes(16), "page 3 with 7 bytes at byte 108"),
        (b"\2\x64\6\0" + bytes(7) + b"\4" + bytes(16), "page 2 with 6 bytes at byte 100"),
        (b"\0\x64\7\0" + bytes(7) + b"\4" + bytes(16), "page 0 with 7 bytes at byte 100"),
    ],
)
def test_a_page_index_that_cannot_be_one_is_corrupt(tail: bytes, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        decode_page_index(tail)


# Older files


@pytest.mark.parametrize("size", [1, 1 << 30], ids=["byte by byte", "whole"])
@pytest.mark.parametrize("page_size", [512, 65536])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"store_size": False, "content_checksum": True},
        {"block_checksum": True, "block_linked": False, "content_checksum": True},
    ],
    ids=["content size", "content checksum, as Litestream wrote it", "block checksums"],
)
def test_pages_in_lz4_frames_are_read(options: dict[str, bool], page_size: int, size: int) -> None:
    header = replace(CHANGE, page_size=page_size)
    pages = {2: text(2, page_size), 3: noise(3, page_size), 4: bytes(page_size)}
    if size == 1:  # the oracle is slow
        pages = {pgno: pages[pgno] for pgno in (2, 3)}
    data = forge(
        header.encode(),
        [page_entry(pgno, 0, lz4.frame.compress(page, **options), page) for pgno, page in pages.items()],
    )
    events, _ = decode_in_pieces(data, size)
    assert content(events)[:2] == (header, pages)
    assert all(event.block == b"" for event in events if isinstance(event, Page))


def test_frames_and_blocks_mix() -> None:
    frame = page_entry(2, 0, lz4.frame.compress(PAGE), PAGE)
    _, pages, _ = decode_file(forge(CHANGE.encode(), [good(1), frame, good(3)]))
    assert [(page.pgno, page.data, bool(page.block)) for page in pages] == [
        (1, PAGE, True),
        (2, PAGE, False),
        (3, PAGE, True),
    ]


# What the encoder refuses


@pytest.mark.parametrize(
    "fields",
    [
        {"page_size": 1000},
        {"flags": 1},
        {"min_txid": 0},
        {"min_txid": 9, "max_txid": 8},
        {"max_txid": U64 + 1},
        {"commit_pages": U32 + 1},
        {"commit_pages": -1},
        {"timestamp_ms": I64 + 1},
        {"term": U32 + 1},
        {"wal_salt": (1, 1)},
        {"pre_checksum": A_CHECKSUM},
        {"flags": 0},
        {"flags": 0, "pre_checksum": 1},
        {"flags": 0, "min_txid": 1, "pre_checksum": A_CHECKSUM},
        {"database_checksum": 1},
    ],
    ids=str,
)
def test_a_header_that_would_not_be_read_is_not_written(fields: dict[str, Any]) -> None:
    written: list[bytes] = []
    with pytest.raises(ValueError, match=r"."):
        Encoder(replace(CHANGE, **fields), written.append)
    assert written == []


WRONG_ADDS: dict[str, tuple[Callable[[Encoder], object], str]] = {
    "page 0": (lambda encoder: encoder.add(0, PAGE), "page 0 where"),
    "page past the end": (lambda encoder: encoder.add(10, PAGE), "page 10 where one from 3 to 9"),
    "page again": (lambda encoder: encoder.add(2, PAGE), "page 2 where one from 3 to 9"),
    "short page": (lambda encoder: encoder.add(3, PAGE[1:]), "has 511 bytes, not 512"),
    "long page": (lambda encoder: encoder.add(3, PAGE + b"x"), "has 513 bytes, not 512"),
    "no block": (lambda encoder: encoder.add_block(3, b"", PAGE), "block of 0 bytes"),
    "long block": (lambda encoder: encoder.add_block(3, bytes(531), PAGE), "block of 531 bytes"),
    "post-apply checksum with the flag": (lambda encoder: encoder.finish(A_CHECKSUM), "can be none"),
}


@pytest.mark.parametrize("wrong", WRONG_ADDS.values(), ids=WRONG_ADDS.keys())
def test_a_refused_page_leaves_the_file_as_it_was(wrong: tuple[Callable[[Encoder], object], str]) -> None:
    def write(refused: bool) -> bytes:
        out = bytearray()
        encoder = Encoder(CHANGE, out.extend)
        encoder.add(2, PAGE)
        if refused:
            with pytest.raises(ValueError, match=wrong[1]):
                wrong[0](encoder)
        encoder.add(3, PAGE)
        encoder.finish()
        return bytes(out)

    assert write(refused=True) == write(refused=False)


def test_the_lock_page_is_not_written() -> None:
    encoder = Encoder(replace(CHANGE, commit_pages=lock_pgno(512)), lambda _: None)
    with pytest.raises(ValueError, match="is the lock page"):
        encoder.add(lock_pgno(512), PAGE)


def test_a_snapshot_is_not_finished_before_its_last_page() -> None:
    encoder = Encoder(NO_CHECKSUM_SNAPSHOT, lambda _: None)
    encoder.add(1, PAGE)
    with pytest.raises(ValueError, match="page 3 of a snapshot where page 2"):
        encoder.add(3, PAGE)
    with pytest.raises(ValueError, match="ends before page 2 of 3"):
        encoder.finish()


def test_a_snapshot_is_not_finished_with_another_databases_checksum() -> None:
    encoder = Encoder(SNAPSHOT, lambda _: None)
    for pgno, page in THREE.items():
        encoder.add(pgno, page)
    for wrong in (0, 1, A_CHECKSUM, U64 + 1 + snapshot_checksum(THREE)):
        with pytest.raises(ValueError, match="post-apply checksum"):
            encoder.finish(wrong)
    encoder.finish(snapshot_checksum(THREE))


def test_nothing_follows_the_end() -> None:
    encoder = Encoder(CHANGE, lambda _: None)
    encoder.finish()
    with pytest.raises(ValueError, match="finished"):
        encoder.add(1, PAGE)
    with pytest.raises(ValueError, match="finished"):
        encoder.finish()


# Names


@given(st.integers(1, U64), st.integers(1, U64))
def test_names_round_trip(one: int, other: int) -> None:
    txids = min(one, other), max(one, other)
    assert parse_filename(format_filename(*txids)) == txids


def test_names_have_16_digits() -> None:
    assert format_filename(2, 0xABC) == "0000000000000002-0000000000000abc.ltx"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0000000000000002-0000000000000001.ltx",
        "0000000000000000-0000000000000001.ltx",
        "0000000000000001-000000000000000A.ltx",
        "0000000000000001-0000000000000001.ltx.tmp",
        "0000000000000001-0000000000000001.ltx\n",
        "ltx/0000000000000001-0000000000000001.ltx",
        "1-1.ltx",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an LTX file"):
        parse_filename(name)
