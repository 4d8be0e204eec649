"""What `walcast status` knows of a primary (asked over gRPC) or a replica (read beside it); `status_table` shows it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc

from walcast import local, wire
from walcast.access.credentials import Credentials
from walcast.errors import ConfigError, Unavailable
from walcast.facts import finite, lag_facts, moment_text, node_facts, primary_facts, trouble_facts, with_hex
from walcast.identity import read_database_id
from walcast.redaction import shown_url
from walcast.remedies import FailureKind
from walcast.replica import txids_behind
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.statedir import behind_link, is_path, state_dir
from walcast.statusfile import State, read_status, status_path

TIMEOUT_S = 5.0

Facts = dict[str, Any]


def status_of(target: str, tls: wire.Tls) -> Facts:
    """Of a primary, when `target` is HOST:PORT, or of what is at that path."""
    if "://" in target:
        raise ConfigError(f"{shown_url(target)} is a URL: give HOST:PORT, as the node has it in --listen, or a path")
    if is_path(target) or ":" not in target:
        return local_status(behind_link(Path(target)))
    return primary_status(wire.Address.parse(target), tls)


def local_status(path: Path) -> Facts:
    """Of the primary that serves the database at `path` on this host, or of the replica there."""
    if (state_dir(path) / local.NAME).exists():
        try:
            with local.ask(path, "status", timeout_s=TIMEOUT_S) as (facts, _):
                return facts
        except Unavailable:
            pass  # left behind by a process that was killed
    return replica_status(path)


def primary_status(address: wire.Address, tls: wire.Tls) -> Facts:
    """Unavailable when nobody answers, ConfigError when it is no walcast."""
    credentials = Credentials.of(tls)
    with wire.open_channel(address, credentials) as channel:
        try:
            reply = rpc.ReplicationStub(channel).Status(pb.StatusRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.UNIMPLEMENTED:
                raise ConfigError(f"{address}: not a walcast primary") from error
            raise Unavailable(credentials.failure(address, code.name, details, TIMEOUT_S)) from error
    return primary_facts(reply)


def replica_status(path: Path) -> Facts:
    """Of the database at `path`, by its status file: a replica, or what a primary that is stopped was. Unavailable when
    no node ever ran there. What is said of the node is said again in `databases`, where each kind of status has it."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file; give the path of a database, or HOST:PORT of a node")
    status = read_status(path)
    now = time.time_ns()
    wal = Path(f"{path}-wal")
    live = status.is_live(now)
    lag_ms = status.lag_ms(now) if status.level_ns else None
    facts = {
        "name": status.name,
        "path": str(path.absolute()),
        "id": status.follower_id,
        "database_id": _database_id(path),
        "role": "primary" if status.is_own else "follower",
        "state": str(status.state if live else State.STOPPED),
        "since": None if live else _last_word(path),
        "term": status.term,
        "position": str(status.position),
        "txid": status.position.txid,
        "primary_txid": status.primary_txid,
        "lag_txids": txids_behind(path, status),
        "lag_ms": finite(lag_ms),
        "lag": lag_facts(None, None, None if status.is_own else lag_ms),  # nobody tells what the primary has now
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
        "primary": status.primary,
        "app_url": status.app_url or None,
        "app_url_refused": status.app_url_refused or None,
        "pid": status.pid,
        "trouble": None if live else f"{path}: stopped: no walcast process runs here",
    }
    return path_facts(facts)


def follower_status(path: Path, database: Facts) -> Facts:
    """Return the status of the follower of `path` that runs in this process.

    It is what the status file says, or `database`, what the follower's member says, while there is no status file or
    it was written by the primary that this node was before.
    """
    try:
        found = replica_status(path)
    except (ConfigError, Unavailable):
        found = None
    if found is None or found["role"] != database["role"]:
        return database | {"databases": [database]}
    return found


def path_facts(facts: Facts) -> Facts:
    """The status of the database at one path, as the one database of a node."""
    names = {name: facts.get(name) or "" for name in ("path", "primary", "role")}
    flags = f" --primary {names['primary']}" if facts["role"] == "follower" else ""
    kind = FailureKind.STOPPED if facts["state"] == str(State.STOPPED) else FailureKind.OTHER
    troubles = [trouble_facts(kind, facts["trouble"], flags=flags, **names)] if facts["trouble"] else []
    database = with_hex({"archive": None, "followers": [], "lease": None} | facts | {"troubles": troubles})
    node = node_facts(facts["role"], facts["term"], [database])
    return with_hex(facts) | {"troubles": troubles} | node


def _last_word(path: Path) -> str | None:
    """When the process that is gone last wrote its status."""
    try:
        return moment_text(int(status_path(path).stat().st_mtime))
    except OSError:
        return None


def _database_id(path: Path) -> str | None:
    try:
        return read_database_id(state_dir(path))
    except (ConfigError, OSError):  # damaged: the node says so when it starts; or another user's
        return None
