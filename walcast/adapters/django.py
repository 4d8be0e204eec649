"""Django 5.1 and later: a replica as an entry of DATABASES, and a router that reads there.

    DATABASES = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/app.db"},
        "replica": replica_database("/srv/app.db"),
    }
    DATABASE_ROUTERS = ["walcast.adapters.django.ReplicaRouter"]

Both are the one file that walcast keeps on a host: on the primary's host "default" writes it; elsewhere a write there
ends with "database is locked", and `walcast.web.WSGIMiddleware` takes requests that write to the primary's app.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from asgiref.local import Local
from django.core.signals import got_request_exception, request_finished, request_started
from django.db import connections

from walcast.connection import ReplicaConnection, ReplicaCursor, file_at
from walcast.locked import explain_locked


def replica_database(path: str | os.PathLike[str], *, primary: str = "default") -> dict[str, Any]:
    """The entry of DATABASES for the replica at `path`: Django's own backend, with connections that cannot write.

    A write raises django.db.OperationalError, which says where to write, from `walcast.ReadOnlyReplica`; so do
    migrations of it, which `ReplicaRouter` leaves out. In tests it is a mirror of the database `primary`.
    """
    path = Path(path).absolute()
    _replicas.add(path)
    return {
        "ENGINE": "django.db.backends.sqlite3",
        # As Replica.connect does it: three slashes, and bytes, since names need not be UTF-8.
        "NAME": f"file://{quote(os.fsencode(path))}?mode=ro",
        # query_only refuses CREATE TEMP TABLE and the like, too, which mode=ro alone would let pass.
        "OPTIONS": {"init_command": "PRAGMA query_only = ON", "factory": partial(_connect, path)},
        "TEST": {"MIRROR": primary},
    }


class _Connection(ReplicaConnection):
    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(None if factory is None else _that_explains(factory))


@cache
def _that_explains(factory: type) -> type:
    """Django's cursor, which has placeholders of its own, on top of one that says where to write."""
    return type(factory.__name__, (factory, ReplicaCursor), {})


def _connect(path: Path, /, **keywords: Any) -> _Connection:
    before = file_at(path)
    try:
        connection = _Connection(**keywords)
    except sqlite3.OperationalError as error:
        # In tests it is not `path`, but what that mirrors.
        raise sqlite3.OperationalError(f"{keywords['database']}: {error}") from error
    connection.opened(path, before)
    return connection


class ReplicaRouter:
    """Reads go to `replica` and writes to `primary`, both of them names in DATABASES.

    Reads go to `primary`, too, inside `atomic()` there, and once this request has written (a thread or task that
    serves no request: once it has written, until `forget_writes`), so that nobody reads less than he wrote.

    For all models; put a router for those of other databases before it.
    """

    def __init__(self, primary: str = "default", replica: str = "replica") -> None:
        self.primary = primary
        self.replica = replica

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Where to read a model."""
        if self.primary in _written() or connections[self.primary].in_atomic_block:
            return self.primary
        return self.replica

    def db_for_write(self, model: Any, **hints: Any) -> str:
        """Where to write a model."""
        _here.written = _written() | {self.primary}
        return self.primary

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool | None:
        """They are one database: objects from both belong together. None, no opinion, on others."""
        both = {self.primary, self.replica}
        return True if {one._state.db, other._state.db} <= both else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """A replica is migrated by migrating its primary."""
        return False if db == self.replica else None


# Of this request, whatever threads it goes through; a value is never changed in place, since contexts are copied.
_here = Local()


def _written() -> frozenset[str]:
    names: frozenset[str] = getattr(_here, "written", frozenset())
    return names


def forget_writes(**_: Any) -> None:
    """Read at the replica again; for workers between two jobs. It happens by itself between two requests. A connection
    that was kept (CONN_MAX_AGE) is closed where another file has taken the replica's place."""
    _here.written = frozenset()
    for kept in connections.all(initialized_only=True):
        opened = kept.connection
        if isinstance(opened, ReplicaConnection) and not kept.in_atomic_block and opened.is_replaced:
            kept.close()


_replicas: set[Path] = set()  # of DATABASES


def _explain(**_: Any) -> None:
    """A write of the app's own that a replica refused: into the traceback that Django logs and shows, and the log."""
    error = sys.exception()
    if error is not None:
        for path in _replicas:
            explain_locked(error, path)


got_request_exception.connect(_explain)
request_started.connect(forget_writes)
request_finished.connect(forget_writes)
