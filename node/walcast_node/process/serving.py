"""One database on the air: its capture, its archiver, the socket beside it; opened and let go as one."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from walcast import wire
from walcast.errors import ConfigError, Stopped, Unavailable, WalcastError
from walcast.facts import primary_facts
from walcast.filesystem import check_database_file
from walcast.held import Held
from walcast.identity import make_database_id
from walcast.remedies import FailureKind
from walcast.rpc import replication_pb2 as pb
from walcast.scrub import DEFAULT_BYTES_PER_S
from walcast.statusfile import LOOK_BOUND_S
from walcast.store import Store, open_store
from walcast.store.s3_retry import Bounds
from walcast.terms import TermStart, gaps_between
from walcast_node.config.settings import DatabaseSettings
from walcast_node.process.first_boot import check_not_emptied
from walcast_node.process.local_service import Facts, LocalService, answer_barrier
from walcast_node.process.open_inodes import Inode, Inodes, inode_of
from walcast_primary.archiving.archiver import DRAIN_S as ARCHIVE_DRAIN_S
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.archiving.ownership import find_owner, identify
from walcast_primary.archiving.tenured_store import tenured
from walcast_primary.database import Database
from walcast_primary.publish.served_database import Refused, Served, look_age_ms
from walcast_primary.recovery.resume import State
from walcast_primary.tenure import Tenure

log = logging.getLogger("walcast.primary")

READERS_S = 40.0  # a copy keeps its connection for up to 30 s after its end
READERS_EVERY_S = 0.05
RELEASE_S = 1.0
LEAVE_S = 0.3
ASK_BOUNDS = Bounds(connect_s=1.0, read_s=1.5, attempts=2)  # whose archive it is: a store that is away delays no start


class ServedByName(dict[str, Served]):
    """What the publisher looks names up in. A database that is `away`, and tried again, is refused for now, not as
    unknown: that would be for good."""

    def __init__(self) -> None:
        super().__init__()
        self.away: dict[str, Refused] = {}


def not_served(name: str, why: str) -> Refused:
    """What is said of a database that may be served again."""
    return Refused(pb.REFUSAL_KIND_STOPPING, f"{name!r} is not served now: {why}")


@dataclass(frozen=True, slots=True)
class Place:
    """How a node of a replica set serves a database: for a `tenure`, in a `term` of a `history`; with `held` and `at`,
    from where its replica stands."""

    tenure: Tenure
    term: int
    history: tuple[TermStart, ...] = ()
    held: Held | None = None
    at: State | None = None


class Serving:
    """One database while it is served."""

    def __init__(
        self, settings: DatabaseSettings, inode: Inode, database: Database, store: Store | None, place: Place | None
    ) -> None:
        self.settings = settings
        self.inode = inode
        self.database = database
        self.served = Served(database, place.history if place else ())
        kept = tenured(store, place.tenure) if store and place else store
        history = place.history if place else ()
        self.archiver = (
            Archiver(
                database,
                kept,
                settings.policy,
                history=history,
                take_over=settings.continue_archive,
                take_empty=settings.restore,
            )
            if kept
            else None
        )
        database.loop.foreign.archive = store.url if store else ""
        self._store = store
        self._local: LocalService | None = None
        self.since_ms = int(time.time() * 1000)
        self.drained = False  # what was left went to the archive, or had its time

    @classmethod
    async def open(
        cls,
        settings: DatabaseSettings,
        inodes: Inodes,
        *,
        log_bytes: int,
        log_age_s: float,
        on_failure: Callable[[WalcastError], object],
        place: Place | None = None,
        scrub_bytes_per_s: float = DEFAULT_BYTES_PER_S,
    ) -> Serving:
        """Raises what `walcast_primary.capture.opening` does, and ConfigError when this process serves the file
        already. `on_failure` is called in the event loop when capture ended by itself. With a `place` nothing is
        archived before `begin`."""
        store = await asyncio.to_thread(open_store, settings.archive) if settings.archive else None
        database: Database | None = None
        try:
            path, inode = await asyncio.to_thread(_hold, settings, inodes)
        except BaseException:
            _close(store)
            raise
        try:
            if place is None or place.held is None:
                meant = settings.continue_archive
                await asyncio.to_thread(check_not_emptied, path, store, continue_archive=meant)
            database = await asyncio.to_thread(
                Database,
                path,
                settings.name,
                log_bytes=log_bytes,
                log_age_s=log_age_s,
                held=place.held if place else None,
                tenure=place.tenure if place else None,
                scrub_bytes_per_s=scrub_bytes_per_s,
            )
            loop = asyncio.get_running_loop()
            capture = database.loop
            capture.on_failure = lambda: loop.call_soon_threadsafe(on_failure, capture.failure or Stopped("ended"))
            facts = os.fstat(database.files.db_fd)
            if (facts.st_dev, facts.st_ino) != inode:
                raise Unavailable(f"{path} was replaced while it was being opened")
            serving = cls(settings, inode, database, store, place)
            if place is None:
                await asyncio.to_thread(database.start)
            else:
                await asyncio.to_thread(database.start, at=place.at, term=place.term)
            if place is None or place.held is None or database.id is None:
                strict = (place is None or place.held is None) and not settings.serve_unarchived
                await asyncio.to_thread(_identify, settings, database, store, strict=strict)
        except BaseException:
            if database is not None and (place is None or place.held is None):
                await asyncio.to_thread(database.stop)
            inodes.let_go(inode)
            _close(store)
            raise
        said = {"database": settings.name, "path": str(database.path), "position": str(database.log.position)}
        log.info("serving", extra=said | {"term": database.log.term})
        if place is None:
            serving.begin()
            serving._local = LocalService(path, serving.answers(), lambda: database)
            await serving._local.start()
        return serving

    def begin(self) -> None:
        """Begin to archive; once."""
        if self.archiver is not None:
            self.archiver.start()

    def answers(self) -> dict[str, Callable[[Facts], Awaitable[Facts]]]:
        """What commands on this host may ask."""

        async def status(_: Facts) -> Facts:
            term = self.served.log.term
            facts = primary_facts(pb.StatusReply(role="primary", term=term, databases=[self.status()]))
            facts["databases"][0]["scrub"] = self.database.scrubber.progress.facts()
            return facts

        async def archived(_: Facts) -> Facts:
            if self.archiver is not None:
                self.archiver.look_again()
            return {}

        async def barrier(request: Facts) -> Facts:
            return await answer_barrier(self.served, request)

        return {"status": status, "archived": archived, "barrier": barrier}

    async def release(self, inodes: Inodes) -> Held:
        """Instead of `close`: archive no more, end copies, and keep the files open, with the write lock if writers are
        held."""
        self.database.leaving = Unavailable("this node is not the primary any longer")
        if self.archiver is not None:
            await asyncio.to_thread(self.archiver.stop, drain_s=RELEASE_S)
        while self.database.readers:
            await asyncio.sleep(READERS_EVERY_S)
        held = await asyncio.to_thread(self.database.release)
        inodes.let_go(self.inode)
        _close(self._store)
        return held

    async def close(self, inodes: Inodes, reason: WalcastError | None = None, *, patience_s: float = READERS_S) -> None:
        """End streams and copies with `reason`, upload what is left, let go of the files."""
        if reason is not None:
            loop = self.database.loop
            loop.failure = loop.failure or reason
            self.database.leaving = loop.failure
            self.served.wake()
        if self._local is not None:
            await self._local.stop()
        if self.archiver is not None:
            await asyncio.to_thread(self.archiver.stop, drain_s=LEAVE_S if self.drained else ARCHIVE_DRAIN_S)
        self.database.leaving = self.database.leaving or Unavailable("stopping")
        for _ in range(int(patience_s / READERS_EVERY_S)):
            if not self.database.readers:
                break
            await asyncio.sleep(READERS_EVERY_S)
        await asyncio.to_thread(self.database.stop)
        inodes.let_go(self.inode)
        _close(self._store)

    @property
    def trouble(self) -> str | None:
        """Why not every commit is captured now."""
        loop = self.database.loop
        if loop.failure:
            return str(loop.failure)
        return loop.trouble or loop.blindness or self.database.scrubber.trouble

    def archive_trouble(self, within_s: float) -> str | None:
        """Why the archive does not have every commit that is older than `within_s`; None when it has, or is none."""
        archiver = self.archiver
        if archiver is None:
            return None
        if archiver.error:
            return archiver.error
        if archiver.behind_s > within_s:
            return f"the archive is more than {within_s:.0f} s behind"
        return None if archiver.txid else "nothing is archived yet"

    def status(self) -> pb.DatabaseStatus:
        """What the Status call says of it."""
        database, position = self.database, self.served.log.position
        checksums = self.served.log.checksums
        message = pb.DatabaseStatus(
            name=self.settings.name,
            path=str(database.path.absolute()),
            position=wire.position_message(position, self.served.log.term),
            page_size=database.page_size,
            pages=checksums.commit_pages if checksums else 0,
            wal_bytes=database.wal_bytes,
            log_bytes=self.served.log.size_bytes,
            log_first_txid=self.served.log.first.txid,
            role="primary",
            database_id=database.id or "",
            term=self.served.log.term,
            trouble=self.trouble or "",
            look_age_ms=look_age_ms(self.served),
            state_since_ms=self.since_ms,
            trouble_kind=trouble_kind(self),
            wal_held=database.loop.long_readers.trouble or "",
        )
        unknown_ms = message.look_age_ms if message.look_age_ms > LOOK_BOUND_S * 1000 else 0
        archiver = self.archiver
        if archiver is not None:
            message.archive.CopyFrom(
                pb.ArchiveStatus(
                    url=archiver.store.url,
                    txid=archiver.txid,
                    error=archiver.error or archiver.upkeep_error or "",
                    lag_ms=int(archiver.behind_s * 1000),
                    lag_bytes=self.served.log.bytes_after(archiver.txid),
                )
            )
        for follower in self.served.followers.connected:
            behind = position.txid - follower.applied_txid
            behind -= gaps_between(self.served.history, follower.applied_txid, position.txid)
            message.followers.append(
                pb.FollowerStatus(
                    id=follower.id,
                    received_txid=follower.received_txid,
                    applied_txid=follower.applied_txid,
                    durable_txid=follower.durable_txid,
                    lag_txids=max(0, behind),
                    lag_ms=max(follower.lag_ms(), unknown_ms),
                    lag_bytes=self.served.log.bytes_after(follower.applied_txid),
                    state=follower.state,
                    peer=follower.peer,
                    address=follower.address,
                )
            )
        return message


def trouble_kind(serving: Serving) -> str:
    """A word for what its `trouble` says; "" for none."""
    text = serving.trouble
    if text is None:
        return ""
    return FailureKind.DAMAGED if text == serving.database.scrubber.trouble else FailureKind.NOT_CAPTURED


def _close(store: Store | None) -> None:
    if store is not None:
        store.close()


def _identify(settings: DatabaseSettings, database: Database, store: Store | None, *, strict: bool) -> None:
    """See that the database has an id, and that the archive is not another's; the store is asked, but not for long.

    OtherDatabase, or ConfigError where nobody can tell, keeps a primary from starting. One that is not `strict`, as a
    node that is promoted, serves all the same: the archiver archives nothing, and says so.
    """
    try:
        owner = None
        if store is not None and settings.archive:
            with open_store(settings.archive, ASK_BOUNDS) as asked:
                owner = find_owner(asked)
        identify(database, store, owner, take_over=settings.continue_archive, take_empty=settings.restore)
    except ConfigError:
        if strict:
            raise
        if database.id is None:
            database.identify(make_database_id())


def _hold(settings: DatabaseSettings, inodes: Inodes) -> tuple[Path, Inode]:
    """The file itself, where `path` is a link (SQLite keeps its side files beside the file); reserved."""
    path = settings.path.resolve() if settings.path.is_symlink() else settings.path
    try:
        inode = inode_of(path)
    except OSError:
        check_database_file(path)  # says what is wrong
        raise
    holder = inodes.hold(inode, settings.name)
    if holder is not None:
        raise ConfigError(f"{settings.path} is the same file as the database {holder!r}, which is served already")
    return path, inode
