"""What another node answers to Status: JSON that can be read, and a table whose words are no markup."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.message import DecodeError
from rich.text import Text

from walcast.facts import primary_facts
from walcast.rpc import replication_pb2 as pb
from walcast_node.commands.status_table import table

ALLOWED = (DecodeError,)
TOKENS = [b"\x1b[2J", b"[/]", b"[bold]", b"\n", b"\xe2\x80\xae", b"\xc2\x85", b"\x08" + b"\xff" * 9 + b"\x01"]


def seeds() -> list[bytes]:
    position = pb.Position(txid=7, checksum=1 << 63, term=2)
    follower = pb.FollowerStatus(
        id="edge-1", received_txid=7, applied_txid=7, lag_ms=1.5, state="streaming", peer="ipv4:x"
    )
    database = pb.DatabaseStatus(
        name="app", path="/srv/app.db", position=position, followers=[follower], wal_bytes=4096
    )
    database.archive.CopyFrom(pb.ArchiveStatus(url="s3://bucket/app", txid=6, error="it does not answer"))
    database.lease.CopyFrom(pb.LeaseStatus(holder="a", address="10.0.0.1:7420", lease_ms=10_000, left_ms=-5))
    other = pb.DatabaseStatus(name="b", role="follower", primary="10.0.0.1:7420", state="streaming", trouble="none")
    database.followers.add(id="edge-2", lag_ms=float("nan"))
    database.followers.add(id="edge-3", lag_ms=float("inf"))
    tls = pb.TlsStatus(identity="node/a", not_after_s=1_800_000_000)
    replies = [
        pb.StatusReply(role="primary", term=2, protocol=1, databases=[database, other], tls=tls),
        pb.StatusReply(role="follower", databases=[other], tls=pb.TlsStatus(not_after_s=-(1 << 62))),
    ]
    return [reply.SerializeToString() for reply in replies]


def target(data: bytes) -> None:
    facts = primary_facts(pb.StatusReply.FromString(data))
    json.loads(json.dumps(facts, allow_nan=False))
    shown = table(facts)
    words: list[Any] = [shown.title, shown.caption, *(cell for column in shown.columns for cell in column.cells)]
    for one in words:
        if isinstance(one, Text):
            assert all(line.isprintable() for line in one.plain.split("\n")), one
        else:  # rich reads it as markup: numbers alone
            assert one is None or not str(one).strip("0123456789.-einfa"), one
