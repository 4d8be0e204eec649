"""What apps import: `Replica` reads a replica on this host, `Primary` asks a primary for a position to wait for.

    replica = walcast.Replica("/edge/app.db")
    with replica.connect() as db:
        rows = db.execute("select …").fetchall()

    token = walcast.Primary("127.0.0.1:7420", name="app").barrier()     # or on its host, Primary("/srv/app.db")
    replica.wait_for(token, timeout=2.0)                                # or await replica.wait_for_async(token)

Names are loaded when they are first asked for: `import walcast` costs next to nothing, and gRPC comes only with the
first call of a `Primary`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walcast.connection import ReadOnlyReplica, ReplicaReplaced
    from walcast.errors import (
        ConfigError,
        Corrupt,
        Diverged,
        LostContinuity,
        Stopped,
        Unavailable,
        WalcastError,
    )
    from walcast.position import Position
    from walcast.primary import Primary
    from walcast.replica import Lag, Replica
    from walcast.token import NotEnoughFollowers, NotPrimary, StaleReplica, Token

    __version__: str

__all__ = [
    "ConfigError",
    "Corrupt",
    "Diverged",
    "Lag",
    "LostContinuity",
    "NotEnoughFollowers",
    "NotPrimary",
    "Position",
    "Primary",
    "ReadOnlyReplica",
    "Replica",
    "ReplicaReplaced",
    "StaleReplica",
    "Stopped",
    "Token",
    "Unavailable",
    "WalcastError",
    "__version__",
]

_ELSEWHERE = {
    "Lag": "walcast.replica",
    "NotEnoughFollowers": "walcast.token",
    "NotPrimary": "walcast.token",
    "Position": "walcast.position",
    "Primary": "walcast.primary",
    "ReadOnlyReplica": "walcast.connection",
    "Replica": "walcast.replica",
    "ReplicaReplaced": "walcast.connection",
    "StaleReplica": "walcast.token",
    "Token": "walcast.token",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("walcast")
    elif name in __all__:
        value = getattr(import_module(_ELSEWHERE.get(name, "walcast.errors")), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
