"""What the Status call answered, as the data that `walcast status --json` prints and `Primary.status()` returns."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from walcast import wire
from walcast.rpc import replication_pb2 as pb


def primary_facts(reply: pb.StatusReply) -> dict[str, Any]:
    """Role, term, and every database with its followers."""
    facts: dict[str, Any] = {"role": reply.role, "term": reply.term}
    facts["databases"] = [_database(d) for d in reply.databases]
    if reply.credentials_error:
        facts["credentials_error"] = reply.credentials_error
    if reply.HasField("tls"):
        facts["tls"] = {"identity": reply.tls.identity or None, "not_after": moment_text(reply.tls.not_after_s)}
    return facts


def _milliseconds(value: float) -> float:
    """JSON has no number that is not finite, and no primary has such a lag."""
    return round(value, 3) if math.isfinite(value) else 0.0


def moment_text(seconds: int) -> str:
    """In UTC, as ISO 8601 has it; what is no moment that a calendar has, as seconds."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _database(database: pb.DatabaseStatus) -> dict[str, Any]:
    archive, lease = database.archive, database.lease
    more: dict[str, Any] = {"primary": database.primary, "state": database.state} if database.role == "follower" else {}
    return {
        "name": database.name,
        "path": database.path,
        "role": database.role or "primary",
        "term": database.term or 1,
        "database_id": database.database_id or None,
        "trouble": database.trouble or None,
        "app_url": database.app_url or None,
        "app_url_refused": database.app_url_refused or None,
        "look_age_ms": database.look_age_ms if database.role != "follower" else None,
        "lease": {
            "holder": lease.holder,
            "address": lease.address,
            "lease_s": lease.lease_ms / 1000,
            "left_s": lease.left_ms / 1000,
        }
        if database.HasField("lease")
        else None,
        **more,
        "position": str(wire.position_of(database.position)),
        "txid": database.position.txid,
        "page_size": database.page_size,
        "pages": database.pages,
        "wal_bytes": database.wal_bytes,
        "log": {"bytes": database.log_bytes, "first_txid": database.log_first_txid},
        "archive": {"url": archive.url, "txid": archive.txid, "error": archive.error or None}
        if database.HasField("archive")
        else None,
        "followers": [
            {
                "id": follower.id,
                "received_txid": follower.received_txid,
                "applied_txid": follower.applied_txid,
                "durable_txid": follower.durable_txid,
                "lag_txids": follower.lag_txids,
                "lag_ms": _milliseconds(follower.lag_ms),
                "state": follower.state,
                "peer": follower.peer,
                "address": follower.address or None,
            }
            for follower in database.followers
        ],
    }
