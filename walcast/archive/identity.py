"""Whose archive is it? One small object names the database, by its id, that an archive belongs to.

    walcast-database: {"walcast_database": 1, "id": "9f0c…"}

It is written once, before the first upload, and only where there is none. An archive without it is Litestream's or an
older walcast's; it belongs to whoever goes on with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from walcast.errors import Corrupt, Unavailable
from walcast.identity import DatabaseId, parse_database_id
from walcast.store.base import ObjectExists, ObjectMissing, Store

KEY = "walcast-database"
FORMAT = 1
MOST_BYTES = 4096
SETTLE_S = 1.0


def read_archive_id(store: Store) -> DatabaseId | None:
    """None for an archive that names no database. Corrupt when the object is damaged."""
    try:
        data = store.get(KEY, 0, MOST_BYTES + 1)
    except ObjectMissing:
        return None
    try:
        return _decode(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(
            f"{KEY} in {store.url} is damaged ({error}): remove this object if you know whose archive it is; the next "
            "primary that archives there writes it again"
        ) from error


def claim_archive(store: Store, database_id: DatabaseId, wait: Callable[[float], object] = time.sleep) -> DatabaseId:
    """Make the archive this database's, unless it is somebody's: whose it is now.

    Of several that claim it at the same time one gets it, where the store honours preconditions. Where it does not, the
    last one to write gets it: whoever has written waits for SETTLE_S before it reads what is there, longer than another
    takes between its look and its writing. One that takes longer is noticed by whoever asks again later.
    """
    found = read_archive_id(store)
    if found is not None:
        return found
    try:
        _put(store, database_id, if_absent=True)
        if not store.honours_preconditions():
            wait(SETTLE_S)
    except ObjectExists:
        pass
    found = read_archive_id(store)
    if found is None:
        raise Unavailable(f"{KEY} was written to {store.url} and is not there")
    return found


def take_over_archive(store: Store, database_id: DatabaseId) -> None:
    """Make the archive this database's, whosever it was."""
    _put(store, database_id, if_absent=False)


def _put(store: Store, database_id: DatabaseId, *, if_absent: bool) -> None:
    data = json.dumps({"walcast_database": FORMAT, "id": database_id}).encode() + b"\n"
    store.put(KEY, data, timestamp_ms=time.time_ns() // 1_000_000, if_absent=if_absent)


def _decode(data: bytes) -> DatabaseId:
    facts: Any = json.loads(data) if len(data) <= MOST_BYTES else None
    if not isinstance(facts, dict) or facts.get("walcast_database") != FORMAT:
        raise ValueError("not of a version that this walcast knows")
    return parse_database_id(str(facts["id"]))
