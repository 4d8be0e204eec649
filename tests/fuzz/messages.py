"""What a primary says, as a follower takes it: transactions, positions, histories, refusals, ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from fuzz.ltx import PAGE, some_files
from walcast import wire
from walcast.errors import WalcastError
from walcast.position import CHECKSUM_FLAG, Position
from walcast.rpc import replication_pb2 as pb
from walcast.terms import HISTORY_TERMS
from walcast_follower.subscribe.message_checks import check_message, check_welcome
from walcast_follower.subscribe.primary_client import check_database, check_term, refused
from walcast_follower.subscribe.receiver import Receiver

ALLOWED = (DecodeError,)
SHORT = 1500
HERE = wire.Address("127.0.0.1", 1)


class _Pages:
    """A target that only looks at what it is given."""

    term = 0
    page_size = PAGE

    def __init__(self, position: Position) -> None:
        self.position = position
        self._open = False

    def begin(self) -> None:
        assert not self._open
        self._open = True

    def write_pages(self, pgnos: Sequence[Any], pages: Sequence[Any]) -> None:
        assert self._open
        assert len(pgnos) == len(pages)
        assert all(len(page) == PAGE for page in pages)

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        assert self._open
        self._open = False
        self.position = position

    def rollback(self) -> None:
        self._open = False


def seeds() -> list[bytes]:
    start = pb.Position(txid=1, checksum=CHECKSUM_FLAG, term=1)
    later = pb.Position(txid=1 << 21, checksum=CHECKSUM_FLAG, term=1)
    history = [pb.TermStart(term=1, start=start, first_txid=1 << 20)]
    found = [
        pb.PrimaryMessage(
            welcome=pb.Welcome(protocol=1, term=1, database="a", page_size=PAGE, position=later, history=history)
        ),
        pb.PrimaryMessage(
            refusal=pb.Refusal(kind=4, detail="x", protocol=1, position=start, primary="h:1", history=history)
        ),
        pb.PrimaryMessage(heartbeat=pb.Heartbeat(position=start, clock_us=1, tenure_ms=1)),
        pb.PrimaryMessage(hand_over=pb.HandOver(term=2, position=start)),
    ]
    snapshot, _, bare, *_ = some_files()
    for parts in ([snapshot], [snapshot, bare], [bare]):
        ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
        found.append(pb.PrimaryMessage(chunk=pb.Chunk(data=b"".join(parts), ends=ends, term=1, position_txid=2)))
    return [message.SerializeToString() for message in found]


def target(data: bytes) -> None:
    message = pb.PrimaryMessage.FromString(data)
    kind = message.WhichOneof("kind")
    if kind == "welcome":
        check_welcome(message.welcome, seen_term=1)
    else:
        check_message(message, term=1)
    if kind == "chunk":
        for start in (Position(), Position(1, 0)):
            receiver = Receiver(_Pages(start), start, pages=0, term=1)
            try:
                receiver.feed(message.chunk.data, message.chunk.ends)
            except WalcastError:
                if start.txid:
                    raise
    elif kind == "welcome":
        welcome = message.welcome
        assert len(wire.history_of(welcome.history)) <= HISTORY_TERMS
        check_term(HERE, welcome.term, 1)
        check_database(HERE, welcome.database, welcome.database_id, "9f0c" * 8)
    elif kind == "refusal":
        str(refused(message.refusal, HERE))
