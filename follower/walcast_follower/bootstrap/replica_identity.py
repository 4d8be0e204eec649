"""Of which database is this replica a copy, and may it become a copy of another one?

A replica is a replica only of the history that it has followed:

    nothing at the path                    it becomes a copy of whatever database is followed
    a database with an id                  a copy of that one; a primary or an archive with another id is refused
    a database without an id               a copy only once the primary has accepted its position on the stream, which
                                           the journal must name: a replica of an older walcast. Its id is kept then

Everything else is overwritten only with `--replace`. The id changes with the commit that makes the database another
one, in an order in which no crash leaves the content of one database with the id of the other:

    forget the old id → commit → sync → write the new id

Whoever is interrupted in between finds a database without an id, and one that is whole: the third line of the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walcast import wire
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.identity import (
    DatabaseId,
    OtherDatabase,
    forget_database_id,
    id_of_database,
    parse_database_id,
    read_database_id,
    write_database_id,
)
from walcast.position import Position
from walcast_follower.subscribe.receiver import Target

log = logging.getLogger("walcast.follower")


class ReplicaIdentity:
    """One replica's. `replace`: whatever is at the path may be overwritten, once.

    `is_replica` says whether the content of the path is that of a replica, so that it can be brought up to date by
    whatever way there is. ConfigError when the id is damaged.
    """

    def __init__(self, path: Path, state_dir: Path, *, replace: bool = False) -> None:
        self.id = id_of_database(path)
        self.is_replica = self.id is not None or not _holds_data(path)
        self.replace = replace
        self._path = path
        self._state_dir = state_dir

    @property
    def asked(self) -> str:
        """For a hello."""
        return self.id or ""

    @property
    def may_change(self) -> bool:
        """May pages of it be overwritten by what another side has?"""
        return self.is_replica or self.replace

    def made(self) -> None:
        """The database at the path was made by this process."""
        self.id = read_database_id(self._state_dir)
        self.is_replica = True

    def accepted(self, theirs: str) -> None:
        """The primary goes on from the replica's position: it is of that database. `theirs`: "" from an older one."""
        self.is_replica = True
        if self.id is None and theirs:
            self.become(parse_database_id(theirs))
            log.info("the replica is known by its position", extra={"database": str(self._path), "id": self.id})
        self.replace = False

    def renaming(self, target: Target, theirs: str, sync: Callable[[], object] | None) -> Target:
        """`target`, for the one transaction after which the replica is a copy of the database `theirs`. `sync` makes
        that commit durable; None for a file that is not in its place before."""
        new = parse_database_id(theirs) if theirs else None
        if new == self.id and (sync is not None or new is not None):
            return target
        return _Renaming(target, self, new, sync)

    def refused(self, primary: wire.Address, why: WalcastError) -> ConfigError:
        """What to tell, and what to do, when this is no copy of what the primary has."""
        advice = "give the --primary that it belongs to, or another path, or overwrite it with --replace"
        if isinstance(why, OtherDatabase):
            message = (
                f"{self._path} is a copy of the database {self.id}, and the primary has another one: {why}; {advice}"
            )
            return OtherDatabase(message, mine=self.asked, theirs=why.theirs)
        return ConfigError(
            f"{self._path}: holds data and is no replica of what the primary at {primary} has, as far as anybody can "
            f"tell ({why}); {advice}"
        )

    def become(self, new: DatabaseId | None) -> None:
        """The id is `new`, durably. Unavailable when the disk does not take it."""
        try:
            if new is None:
                forget_database_id(self._state_dir)
            else:
                write_database_id(self._state_dir, new)
        except OSError as error:
            raise Unavailable(f"{self._state_dir}: the database id cannot be written: {error.strerror}") from error
        self.id = new


def _holds_data(path: Path) -> bool:
    """Not opened, as in `id_of_database`."""
    return path.exists() and path.stat().st_size > 0


class _Renaming:
    """Stands before a target in one transaction."""

    def __init__(
        self, target: Target, identity: ReplicaIdentity, new: DatabaseId | None, sync: Callable[[], object] | None
    ) -> None:
        self._target = target
        self._identity = identity
        self._new = new
        self._sync = sync
        self.page_size = target.page_size
        self.position = target.position
        self.term = target.term

    def begin(self) -> None:
        self._target.begin()

    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None:
        self._target.write_pages(pgnos, pages)

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        identity, old = self._identity, self._identity.id
        # Where there is no database yet, what is left of an older one means nothing, and the new id may come first.
        identity.become(self._new if self._sync is None else None)
        try:
            self._target.commit(term, position, commit_pages, timestamp_ms)
        except BaseException:
            identity.become(old)  # rolled back: it is what it was
            raise
        self.position, self.term = self._target.position, self._target.term
        identity.is_replica, identity.replace = True, False
        if self._sync is not None:
            self._sync()
            identity.become(self._new)

    def rollback(self) -> None:
        self._target.rollback()
