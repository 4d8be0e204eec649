"""A primary that lies, in a thread of the test, and one that does not, to compare it with.

`EvilPrimary` serves a small real database. Tests replace what it says: `welcome`, `refusal`, `copied` and `streamed`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import lz4.block

from walcast import ltx, wire
from walcast.checksum import page_checksum
from walcast.ltx.body import PAGE_FLAG_SIZE, PREFIX, TRAILER, Pages
from walcast.position import CHECKSUM_FLAG
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc

PAGE_SIZE = 4096
HEARTBEAT_S = 0.2
TXID = 5
MESSAGE_BYTES = 64 << 20


def small_database(folder: Path) -> list[bytes]:
    """The pages of a database in WAL mode with one table of three rows."""
    path = folder / "seed.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=WAL; CREATE TABLE t (x); ")
    db.execute("INSERT INTO t VALUES ('a'), ('b'), ('c')")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    data = path.read_bytes()
    return [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]


def checksum_of(pages: list[bytes]) -> int:
    value = CHECKSUM_FLAG
    for pgno, page in enumerate(pages, 1):
        value ^= page_checksum(pgno, page) & ~CHECKSUM_FLAG
    return value


def compressed(page: bytes) -> bytes:
    block: bytes = lz4.block.compress(page, store_size=False)
    return block


class EvilPrimary(rpc.ReplicationServicer):
    """Honest as it is. Attributes are what the next call says."""

    def __init__(self, pages: list[bytes]) -> None:
        self.pages = pages
        self.checksum = checksum_of(pages)
        self.position = pb.Position(txid=TXID, checksum=self.checksum, term=1)
        self.welcome: dict[str, Any] = {}
        self.refusal: Callable[[pb.Hello], pb.Refusal | None] = lambda hello: None
        self.copied: Callable[[], Iterator[pb.CopyReply]] = self.honest_copy
        self.streamed: Callable[[], Iterator[pb.PrimaryMessage]] = lambda: iter(())
        self.streams = 0
        self.copies = 0
        self.over = threading.Event()

    # What an honest primary says

    def honest_copy(self) -> Iterator[pb.CopyReply]:
        yield self.start()
        yield self.piece(range(1, len(self.pages) + 1), self.pages, scanned_pages=len(self.pages))
        yield pb.CopyReply(end=pb.CopyEnd(position=self.position))

    def start(self, **facts: Any) -> pb.CopyReply:
        said = {"position": self.position, "page_size": PAGE_SIZE, "commit_pages": len(self.pages)} | facts
        return pb.CopyReply(start=pb.CopyStart(**said))

    def piece(self, pgnos: Any, pages: list[bytes], **facts: Any) -> pb.CopyReply:
        blocks = [compressed(page) for page in pages]
        said = {"pgnos": pgnos, "sizes": [len(block) for block in blocks], "blocks": b"".join(blocks)} | facts
        return pb.CopyReply(pages=pb.CopyPages(**said))

    def transaction(self, pages: dict[int, bytes], commit_pages: int = 0, **facts: Any) -> pb.PrimaryMessage:
        """One LTX file with true checksums, which makes the database's first state the second."""
        said = {"page_size": PAGE_SIZE, "commit_pages": commit_pages or len(self.pages), "timestamp_ms": 1, "term": 1}
        header = ltx.Header(
            **(said | {"min_txid": TXID + 1, "max_txid": TXID + 1, "pre_checksum": self.checksum} | facts)
        )
        after = self.checksum
        for pgno, page in pages.items():
            if pgno <= len(self.pages):
                after ^= page_checksum(pgno, self.pages[pgno - 1])
            after ^= page_checksum(pgno, page)
        data = encoded(header, pages, after | CHECKSUM_FLAG)
        return pb.PrimaryMessage(chunk=pb.Chunk(data=data, ends=[len(data)], position_txid=header.max_txid, term=1))

    # The service

    def Stream(self, requests: Iterator[pb.FollowerMessage], context: Any) -> Iterator[pb.PrimaryMessage]:  # noqa: N802
        hello = next(requests).hello
        self.streams += 1
        refusal = self.refusal(hello)
        if refusal is None and not hello.position.txid:
            refusal = pb.Refusal(kind=pb.REFUSAL_KIND_DIVERGED, detail="no position")
        if refusal is not None:
            yield pb.PrimaryMessage(refusal=refusal)
            return
        said = {"protocol": wire.PROTOCOL_VERSION, "term": 1, "database": "app", "page_size": PAGE_SIZE}
        yield pb.PrimaryMessage(welcome=pb.Welcome(**(said | {"position": self.position} | self.welcome)))
        yield from self.streamed()
        while not self.over.wait(HEARTBEAT_S):
            yield pb.PrimaryMessage(heartbeat=pb.Heartbeat(position=self.position))

    def Copy(self, requests: Iterator[pb.CopyRequest], context: Any) -> Iterator[pb.CopyReply]:  # noqa: N802
        self.copies += 1
        yield from self.copied()
        self.over.wait(2.0)


def encoded(header: ltx.Header, pages: dict[int, bytes], post_checksum: int) -> bytes:
    """An LTX file whose post-apply checksum is whatever is given."""
    head = header.encode()
    body, parts = Pages(header, head), [head]
    for pgno, page in pages.items():
        block = compressed(page)
        prefix = PREFIX.pack(pgno, PAGE_FLAG_SIZE, len(block))
        body.add(pgno, prefix, page, len(prefix) + len(block))
        parts += [prefix, block]
    end = body.end()
    return b"".join(parts) + end + TRAILER.pack(post_checksum, body.file_checksum(end, post_checksum))


@contextmanager
def serving(evil: EvilPrimary) -> Iterator[wire.Address]:
    """Where it answers."""
    server = grpc.server(
        futures.ThreadPoolExecutor(8),
        options=[("grpc.max_send_message_length", MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
    )
    rpc.add_ReplicationServicer_to_server(evil, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield wire.Address("127.0.0.1", port)
    finally:
        evil.over.set()
        server.stop(0).wait()
