"""What a primary says, checked before anything looks at it. Pure.

A primary may be hostile, broken, or somebody else who answers at its address. Whatever it sends is compared with what
is possible before memory or disk is taken for it, before it is stored and before readers see it. ProtocolViolation
costs it the connection; the replica stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from walcast import wire
from walcast.checksum import lock_pgno
from walcast.errors import ProtocolViolation
from walcast.identifiers import check_identifier
from walcast.ltx import HEADER_SIZE, PAGE_HEADER_SIZE, TRAILER_SIZE, Header, block_max_bytes
from walcast.moment import TIMESTAMP_MAX_MS
from walcast.position import CHECKSUM_FLAG, Position
from walcast.rpc import replication_pb2 as pb
from walcast.terms import HISTORY_TERMS, TERM_STEP_MAX, TXID_MAX, TXID_STEP_MAX, TermStart, is_plausible_term

PAGE_SIZES = frozenset(1 << power for power in range(9, 17))  # SQLite's: 512 to 65536
COMMIT_PAGES_MAX = 0xFFFFFFFE  # SQLite's
URL_MAX_CHARS = 1_000  # what is in it is for whoever uses it to check
COPY_BLOCKS_MAX_BYTES = 1 << 20  # of one message; a primary sends a quarter of that
_LTX_LEAST_BYTES = HEADER_SIZE + PAGE_HEADER_SIZE + TRAILER_SIZE


@contextmanager
def said_by(primary: wire.Address) -> Iterator[None]:
    """A ProtocolViolation inside → one that says of whom."""
    try:
        yield
    except ProtocolViolation as error:
        if str(error).startswith(f"{primary}: "):
            raise
        raise ProtocolViolation(f"{primary}: {error}") from error


def check_seen_term(term: int, seen: int) -> None:
    """ProtocolViolation for a term that cannot have begun when `seen` is the newest one that is known; 0: none is."""
    if not is_plausible_term(term, seen):
        known = f"term {seen} is the newest that was seen, and none more than {TERM_STEP_MAX:,} above it is believed"
        raise ProtocolViolation(f"it names term {term:,}" + (f"; {known}" if seen else ", which cannot be"))


def check_position(position: pb.Position) -> Position:
    """As a position; TXID 0 is that of a database without transactions."""
    if position.txid > TXID_MAX or (position.txid and not position.checksum & CHECKSUM_FLAG):
        raise ProtocolViolation(f"it names the position {wire.position_of(position)}, which cannot be")
    return wire.position_of(position)


def check_history(messages: Sequence[pb.TermStart], newest_term: int) -> tuple[TermStart, ...]:
    """Where terms began, up to `newest_term`, oldest first."""
    if len(messages) > HISTORY_TERMS:
        raise ProtocolViolation(f"its history has {len(messages):,} terms; at most {HISTORY_TERMS} are sent")
    history = wire.history_of(messages)
    before = 0
    for begun in history:
        if not before < begun.term <= newest_term or not begun.start.txid <= begun.first_txid <= TXID_MAX:
            raise ProtocolViolation(
                f"its history says that term {begun.term} began at {begun.start} with TXID {begun.first_txid}, after "
                f"term {before} and by term {newest_term}"
            )
        before = begun.term
    return history


def check_welcome(welcome: pb.Welcome, seen_term: int) -> None:
    """Everything that a stream begins with, but for the database's id and the app's URL."""
    if welcome.protocol != wire.PROTOCOL_VERSION:
        raise ProtocolViolation(f"it speaks version {welcome.protocol} of the protocol, not {wire.PROTOCOL_VERSION}")
    check_seen_term(welcome.term, seen_term)
    check_identifier("database name", welcome.database, optional=True)
    if len(welcome.app_url) > URL_MAX_CHARS:
        raise ProtocolViolation(f"it names an app's URL of {len(welcome.app_url):,} characters")
    if welcome.page_size not in PAGE_SIZES:
        raise ProtocolViolation(f"it says that pages have {welcome.page_size} bytes")
    check_position(welcome.position)
    check_position(welcome.resume_at)
    check_history(welcome.history, welcome.term)


def check_resumed_bytes(welcome: pb.Welcome, begun_bytes: int) -> None:
    """A stream goes on behind what the hello said is here, or begins with a whole transaction."""
    if welcome.resume_bytes not in (0, begun_bytes):
        raise ProtocolViolation(
            f"it goes on behind byte {welcome.resume_bytes:,} of a transaction of which {begun_bytes:,} are here"
        )


def check_message(message: pb.PrimaryMessage, term: int) -> None:
    """What comes after the welcome of a primary of `term`."""
    kind = message.WhichOneof("kind")
    if kind == "chunk":
        check_ends(message.chunk.ends, len(message.chunk.data))
    elif kind == "heartbeat":
        check_position(message.heartbeat.position)
    elif kind == "hand_over":
        check_position(message.hand_over.position)
        if not is_plausible_term(message.hand_over.term, max(term, 1)):
            raise ProtocolViolation(f"it offers its place for term {message.hand_over.term:,}, and is of term {term}")


def check_ends(ends: Sequence[int], size: int) -> None:
    """Can LTX files end there in `size` bytes?"""
    if not ends:
        return
    if len(ends) > 1 + size // _LTX_LEAST_BYTES:
        raise ProtocolViolation(f"{len(ends):,} transactions are said to end in {size:,} bytes")
    before = 0
    for end in ends:
        if not before < end <= size:
            raise ProtocolViolation(f"a transaction is said to end at byte {end:,} of {size:,}, after byte {before:,}")
        before = end


def check_transaction(header: Header, term_max: int) -> None:
    """The header of a transaction in the stream of a primary of term `term_max`."""
    if header.term > term_max:
        raise ProtocolViolation(f"a transaction is of term {header.term}, and the primary of term {term_max}")
    if header.max_txid > TXID_MAX or header.max_txid - header.min_txid > TXID_STEP_MAX:
        raise ProtocolViolation(f"a transaction has the TXIDs from {header.min_txid} to {header.max_txid}")
    if not 0 <= header.timestamp_ms <= TIMESTAMP_MAX_MS:
        raise ProtocolViolation(f"a transaction was made at {header.timestamp_ms} ms since 1970, which is no time")
    if not 0 < header.commit_pages <= COMMIT_PAGES_MAX:
        raise ProtocolViolation(f"a transaction leaves a database of {header.commit_pages} pages")


def check_copy_start(start: pb.CopyStart, page_size: int, seen_term: int) -> None:
    """`page_size`: the replica's, 0 where there is none."""
    if start.page_size not in PAGE_SIZES or page_size not in (0, start.page_size):
        needed = f", and the replica's have {page_size}" if page_size else ""
        raise ProtocolViolation(f"the copy has pages of {start.page_size} bytes{needed}")
    if not 0 < start.commit_pages <= COMMIT_PAGES_MAX:
        raise ProtocolViolation(f"the copy is of a database of {start.commit_pages} pages")
    check_seen_term(start.position.term, seen_term)
    if not check_position(start.position):
        raise ProtocolViolation("the copy is of a database without a position")


def check_copy_round(start: pb.CopyStart, before: pb.CopyStart) -> None:
    """A copy that goes on with the pages that have changed since."""
    check_copy_start(start, before.page_size, before.position.term)
    if start.database_id != before.database_id:
        raise ProtocolViolation("a copy goes on as that of another database")
    begun, now = wire.position_of(before.position), wire.position_of(start.position)
    if now.txid < begun.txid or start.position.term < before.position.term:
        raise ProtocolViolation(f"a copy that began at {begun} goes on at {now}")


def check_copy_end(end: pb.CopyEnd, start: pb.CopyStart) -> Position:
    """Where a copy has to be streamed to."""
    begun, ended = wire.position_of(start.position), check_position(end.position)
    if ended.txid < begun.txid or (ended.txid == begun.txid and ended != begun):
        raise ProtocolViolation(f"a copy that began at {begun} ended at {ended}")
    return ended


def check_copied(message: pb.CopyPages, start: pb.CopyStart, after_pgno: int) -> None:
    """One piece of a copy, whose last page before it was `after_pgno`: pages ascend, so none comes twice."""
    blocks, block_max = len(message.blocks), block_max_bytes(start.page_size)
    if blocks > COPY_BLOCKS_MAX_BYTES or len(message.pgnos) > blocks or len(message.sizes) != len(message.pgnos):
        raise ProtocolViolation(
            f"a piece of a copy has {len(message.pgnos):,} pages, {len(message.sizes):,} sizes and {blocks:,} bytes"
        )
    if message.scanned_pages > start.commit_pages:
        raise ProtocolViolation(f"a copy says that it has seen {message.scanned_pages} of {start.commit_pages} pages")
    _check_ascending(message.pgnos, after_pgno, start)
    total = 0
    for size in message.sizes:
        if not 0 < size <= block_max:
            raise ProtocolViolation(f"a page of a copy is in a block of {size:,} bytes")
        total += size
    if total != blocks:
        raise ProtocolViolation(f"the blocks of a piece of a copy have {total:,} bytes, of which {blocks:,} came")


def _check_ascending(pgnos: Iterable[int], after_pgno: int, start: pb.CopyStart) -> None:
    lock, before = lock_pgno(start.page_size), after_pgno
    for pgno in pgnos:
        if not before < pgno <= start.commit_pages or pgno == lock:
            raise ProtocolViolation(f"page {pgno} came after page {before} in a copy of {start.commit_pages} pages")
        before = pgno
