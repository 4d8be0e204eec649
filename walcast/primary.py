"""A primary as an app sees it: a barrier whose token a replica can wait for, and the primary's status.

Every call has a deadline. What goes wrong below, gRPC's errors and the primary's refusals, becomes walcast's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol, Self

from walcast.levels import Level
from walcast.position import Position
from walcast.statedir import is_path
from walcast.token import NotEnoughFollowers, Token

DEADLINE_SLACK_S = 1.0
STATUS_TIMEOUT_S = 5.0
BARRIER_MOST_S = 30.0


class Way(Protocol):
    """How a primary is asked; each call raises after `answer_s` at the latest."""

    def barrier(self, followers: int, level: Level, timeout_s: float, answer_s: float) -> tuple[Token, Position, int]:
        """Token, position, and how many followers have it: fewer than wanted when `timeout_s` was over."""

    def status(self, answer_s: float) -> dict[str, Any]:
        """As data."""

    def close(self) -> None:
        """Let go of connections."""


class Primary:
    """The primary that is asked: the process that serves a database on this host, or one over the network.

        Primary("/srv/app.db")                          a path: by a socket beside the database
        Primary("app.db")                               the same, if the file is there; else write "./app.db"
        Primary("10.0.0.1:7420", name="app")            HOST:PORT; `name` is needed when it serves several databases
        Primary("10.0.0.1:7420,10.0.0.2:7420")          whichever is the primary now; also where one of them says it is

    The first one is the shortest way, for an app on the primary's host: it needs no gRPC, no name and no certificate,
    but must run as the user that walcast runs as. With several addresses a client outlives a failover: one that cannot
    be reached, or is not the primary, leads to the next. An app that writes to a database itself asks that one, by its
    path or its one address: a token of the primary that took its place says nothing of what was written here.

    Beyond this machine an address takes TLS: `tls` is a folder that `walcast certs` made, or else PEM files are
    given (`tls_ca` to trust the primary by, `tls_cert` and `tls_key` to show it), or `insecure=True` for plain
    text. `token`, or the one in `token_file`, tells who asks. The files are read again when they change. Threads
    may share one. ConfigError, from the first call on, when the address or a file is wrong.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        name: str = "",
        *,
        tls: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        token: str = "",
        token_file: str | os.PathLike[str] | None = None,
        insecure: bool = False,
    ) -> None:
        self.address = os.fspath(address)
        self.name = name
        self._way: Way
        if isinstance(address, os.PathLike) or is_path(self.address):
            from walcast.by_socket import BySocket

            self._way = BySocket(Path(address).absolute())
        else:
            from walcast.by_grpc import ByGrpc

            files = {"ca": tls_ca, "cert": tls_cert, "key": tls_key, "token_file": token_file}
            paths = {key: Path(file) for key, file in files.items() if file is not None}
            folder = None if tls is None else Path(tls)
            self._way = ByGrpc(self.address, name, paths, insecure, token, folder)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, {self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channels; a later call opens new ones."""
        self._way.close()

    def barrier(self, followers: int = 0, timeout: float = 2.0, level: str = "durable") -> Token:
        """A token that covers every commit made before this call, by anybody; give it to `Replica.wait_for`.

        With `followers`, return only once that many different followers have it: with `level="durable"` on disk, so
        that it outlives a power failure of their hosts, for which each of them syncs; with `level="applied"` visible to
        their readers, which a power failure may take back. `timeout` is in seconds, 30 at most.

        NotEnoughFollowers when there were fewer in time: its `token` is valid all the same. NotPrimary when the node
        that was asked is not the primary now; Unavailable, of which that is one, when the primary does not answer,
        cannot capture or is stopping; ConfigError when it has no such database; ValueError for another level.
        """
        if not timeout >= 0 or followers < 0:
            raise ValueError(f"barrier(followers={followers}, timeout={timeout}): negative")
        wanted = Level.parse(level)
        timeout = min(timeout, BARRIER_MOST_S)
        token, position, count = self._way.barrier(followers, wanted, timeout, timeout + DEADLINE_SLACK_S)
        if count < followers:
            have = f"have {token} on disk" if wanted is Level.DURABLE else f"have applied {token}"
            raise NotEnoughFollowers(
                f"{self._way}: {count} of {followers} followers {have} within {timeout:g} s (level {wanted})",
                token=token,
                position=position,
                applied=count,
                wanted=followers,
                level=wanted,
            )
        return token

    def status(self) -> dict[str, Any]:
        """What `walcast status --json` prints: role, term, databases with their archive and followers. A node that is
        not the primary, asked by its path, says what its replica does."""
        return self._way.status(STATUS_TIMEOUT_S)
