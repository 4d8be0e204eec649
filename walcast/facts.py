"""What the Status call answered, as the data that `walcast status --json` prints and `Primary.status()` returns.

`docs/status.schema.json` says what is in it. Names that were there stay; `SCHEMA_VERSION` counts what is added.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from walcast import wire
from walcast.remedies import NOT_THERE, FailureKind, remedy
from walcast.rpc import replication_pb2 as pb

SCHEMA_VERSION = 1

Facts = dict[str, Any]


def primary_facts(reply: pb.StatusReply) -> Facts:
    """Role, term, and every database with its followers."""
    databases = [_database(d) for d in reply.databases]
    facts = node_facts(reply.role, reply.term, databases)
    if reply.credentials_error:
        facts["credentials_error"] = reply.credentials_error
    if reply.HasField("tls"):
        facts["tls"] = {"identity": reply.tls.identity or None, "not_after": moment_text(reply.tls.not_after_s)}
    return facts


def node_facts(role: str, term: int, databases: list[Facts]) -> Facts:
    """Of a node with these databases: its state is theirs where all have the same, else "mixed"."""
    states = {database["state"] for database in databases}
    since = [database["since"] for database in databases if database["since"]]
    return {
        "schema_version": SCHEMA_VERSION,
        "role": role,
        "state": states.pop() if len(states) == 1 else "mixed" if states else "empty",
        "since": max(since, default=None),
        "term": term,
        "databases": databases,
    }


def lag_facts(transactions: int | None, size_bytes: int | None, ms: float | None) -> Facts:
    """None for what is not known."""
    return {"transactions": transactions, "bytes": size_bytes, "ms": finite(ms)}


def finite(ms: float | None) -> float | None:
    """As JSON has it: what is without end is not known."""
    return None if ms is None or not math.isfinite(ms) else round(ms, 3)


def trouble_facts(kind: str, text: str, **names: str) -> Facts:
    """What is wrong, and what to do about it; `names` are those that the remedy may need."""
    return {"kind": kind or str(FailureKind.OTHER), "text": text, "remedy": remedy(kind, **names)}


def with_hex(facts: Facts) -> Facts:
    """Beside each TXID, which is a number, the same as 16 hex digits, as flags take it."""
    found: Facts = {}
    for name, value in facts.items():
        found[name] = value
        if name.endswith("txid") and isinstance(value, int):
            found[f"{name}_hex"] = f"{value:016x}"
    return found


def since_text(since_ms: int) -> str | None:
    """A moment in UTC; None for 0, which is none."""
    return moment_text(since_ms // 1000) if since_ms else None


def moment_text(seconds: int) -> str:
    """In UTC, as ISO 8601 has it; what is no moment that a calendar has, as seconds."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _database(database: pb.DatabaseStatus) -> Facts:
    archive, lease = database.archive, database.lease
    more: Facts = {"primary": database.primary} if database.role == "follower" else {}
    return with_hex(
        {
            "name": database.name,
            "path": database.path,
            "role": database.role or "primary",
            "state": _state(database),
            "since": since_text(database.state_since_ms),
            "term": database.term or 1,
            "database_id": database.database_id or None,
            "trouble": database.trouble or None,
            "troubles": _troubles(database),
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
            "lag": _lag(database),
            "page_size": database.page_size,
            "pages": database.pages,
            "wal_bytes": database.wal_bytes,
            "log": with_hex({"bytes": database.log_bytes, "first_txid": database.log_first_txid}),
            "archive": _archive(archive, database.position.txid) if database.HasField("archive") else None,
            "followers": [_follower(follower) for follower in database.followers],
        }
    )


def _state(database: pb.DatabaseStatus) -> str:
    if database.trouble_kind == FailureKind.NOT_SERVED:
        return "not-served"
    if database.trouble_kind == FailureKind.NOT_MADE:
        return "waiting"
    if database.role == "follower":
        return database.state or "starting"  # its role is not known yet
    return "fenced" if database.role == "fenced" else "serving"


def _lag(database: pb.DatabaseStatus) -> Facts:
    """Behind the primary; a primary is behind nobody."""
    if database.role != "follower":
        return lag_facts(0, 0, 0.0)
    return lag_facts(
        database.lag_txids if database.HasField("lag_txids") else None,
        database.lag_bytes if database.HasField("lag_bytes") else None,
        database.lag_ms if database.HasField("lag_ms") else None,
    )


def _archive(archive: pb.ArchiveStatus, txid: int) -> Facts:
    size = archive.lag_bytes if archive.HasField("lag_bytes") else None
    return with_hex(
        {
            "url": archive.url,
            "txid": archive.txid,
            "error": archive.error or None,
            "lag": lag_facts(max(0, txid - archive.txid), size, archive.lag_ms),
        }
    )


def _follower(follower: pb.FollowerStatus) -> Facts:
    size = follower.lag_bytes if follower.HasField("lag_bytes") else None
    return with_hex(
        {
            "id": follower.id,
            "received_txid": follower.received_txid,
            "applied_txid": follower.applied_txid,
            "durable_txid": follower.durable_txid,
            "lag_txids": follower.lag_txids,
            "lag_ms": finite(follower.lag_ms) or 0.0,
            "lag": lag_facts(follower.lag_txids, size, follower.lag_ms),
            "state": follower.state,
            "peer": follower.peer,
            "address": follower.address or None,
        }
    )


def _troubles(database: pb.DatabaseStatus) -> list[Facts]:
    names = {"path": database.path, "primary": database.primary, "url": database.archive.url, "role": database.role}
    said = [
        (database.trouble_kind, database.trouble),
        (FailureKind.NOT_ARCHIVED, database.archive.error if database.trouble_kind not in NOT_THERE else ""),
        (FailureKind.APP_URL_REFUSED, database.app_url_refused),
        (FailureKind.WAL_HELD, database.wal_held),
    ]
    return [trouble_facts(kind, text, **names) for kind, text in said if text]
