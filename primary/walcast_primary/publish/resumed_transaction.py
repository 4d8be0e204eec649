"""A stream that goes on inside the transaction where one before it broke off."""

from __future__ import annotations

from walcast import ltx
from walcast.errors import Corrupt
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast_primary.transaction_log.transaction_log import TransactionLog


def resume_bytes(log: TransactionLog, position: Position, hello: pb.Hello) -> int:
    """How many bytes of the transaction after `position` need not be sent again: as many as the follower says that it
    has, if they are of the one that is in the log; else 0.

    The log is written once, so an equal header is that of the same bytes: it has the time, the checksums of the
    database before it, and that of the WAL frame which it ends with. What the follower puts together is proven by the
    transaction's own checksums.
    """
    entry = log.after(position.txid) if hello.partial_bytes else None
    if entry is None or not ltx.HEADER_SIZE <= hello.partial_bytes < entry.size:
        return 0
    try:
        same = entry.read(0, ltx.HEADER_SIZE) == hello.partial_header
    except (Corrupt, OSError):
        return 0
    return hello.partial_bytes if same else 0
