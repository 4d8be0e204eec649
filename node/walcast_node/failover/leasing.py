"""What a member has to do with the lease: is there one, may this node go by it, what the decisions are told."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from typing import TYPE_CHECKING

from walcast.errors import ConfigError, Corrupt, Unavailable
from walcast.identity import OtherDatabase
from walcast.store import ForeignObject, Store, UnsettledObject, open_store
from walcast.store.s3_retry import Bounds
from walcast.terms import FOLLOWER, PRIMARY
from walcast_node.failover import state as d
from walcast_node.failover.claims import Claim
from walcast_node.failover.decisions import start
from walcast_node.failover.keeper import MEND, Keeper
from walcast_node.failover.lease import KEY, Lease, is_other, other_words
from walcast_primary.tenure import now_s

if TYPE_CHECKING:
    from walcast_follower.following import Following
    from walcast_node.failover.member import Member

log = logging.getLogger("walcast.failover")

LEASE_BOUNDS = Bounds(connect_s=1.0, read_s=1.5, attempts=2)
SILENT_S = 1.5  # a primary with a lease sends a heartbeat every second, or more often if the lease is short
SILENT = 0.35  # of the lease's time
LOOK_S = 0.25
LOOKS = 10  # at least, in the time of a lease
_UNREADABLE = (Corrupt, ForeignObject, UnsettledObject)


class Leasing:
    """One member's. `archive` is where it restores from, `store` the same place with the patience of a lease."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.keeper: Keeper | None = None
        self.archive: Store | None = None
        self.store: Store | None = None
        self.reason: str | None = None  # why there is no lease, where there should be one

    @property
    def trouble(self) -> str | None:
        """What keeps this node from going by the lease; None: nothing."""
        return self.reason or (self.keeper.error if self.keeper is not None else None)

    def close(self) -> None:
        """Close the stores."""
        for store in (self.archive, self.store):
            if store is not None:
                store.close()

    async def find(self) -> bool:
        """Does this set go by a lease? One that is there is heeded by everybody."""
        archive = self._member.settings.database.archive
        if not archive:
            if self._member.settings.auto:
                raise ConfigError(f"{self._member.path}: --auto-failover needs an archive, where the lease is kept")
            return False
        self.archive = open_store(archive)
        store = open_store(archive, LEASE_BOUNDS)
        self.store = store
        try:
            await asyncio.to_thread(self._check_database, store)
            if not self._member.settings.auto and (
                self._member.standing.role == FOLLOWER or not self._member.standing.lease
            ):
                return self._member.standing.lease or await asyncio.to_thread(self._is_kept, store)
            if await asyncio.to_thread(store.honours_swaps):
                await asyncio.to_thread(self._check_newcomer, store)
                return True
        except _UNREADABLE as error:
            # Somebody keeps a lease here, and it may be another node's: nobody acts until it is mended.
            log.error("the lease cannot be read", extra={"url": store.url, "error": f"{error}; {MEND}"})  # noqa: TRY400
            return True
        except Unavailable as error:
            if self._member.standing.lease or self._member.settings.auto:
                log.warning("the lease cannot be asked for", extra={"url": store.url, "error": str(error)})
                return True  # not without it
            return False
        self.reason = f"no automatic failover: {store.url} ignores preconditions, so no lease can be kept there"
        log.error("no automatic failover", extra={"url": store.url, "reason": "the store ignores preconditions"})
        return False

    def _check_database(self, store: Store) -> None:
        """A lease of another database is not this node's to take, nor its primary one to follow: OtherDatabase."""
        settings = self._member.settings
        mine = self._member.database_id
        if not mine or settings.database.continue_archive or (settings.replace and not self._member.is_primary):
            return
        try:
            found = store.read(KEY)
            lease = Lease.decode(found.data) if found is not None else None
        except (ConfigError, Corrupt):
            return  # whoever needs the lease says so
        if lease is not None and is_other(lease, mine):
            raise OtherDatabase(
                f"{self._member.path}: {other_words(store.url, lease, mine)}; give it another archive, or, to "
                "overwrite it with that database, start it with `walcast follower … --replace`",
                mine=mine,
                theirs=lease.database,
            )

    def _is_kept(self, store: Store) -> bool:
        """Is there a lease, of which this node was not told?"""
        try:
            found = store.read(KEY)
        except ForeignObject:
            raise
        except ConfigError as error:
            if self._member.standing.role == FOLLOWER:
                raise
            log.warning("the archive cannot be asked for a lease", extra={"url": store.url, "error": str(error)})
            return False  # the archiver says so, too, and followers can be served all the same
        if found is not None:
            self._check_newcomer(store)
        return found is not None

    def _check_newcomer(self, store: Store) -> None:
        """A primary that never took part must not make way for a set that is not its own, nor lead it: either would
        overwrite somebody's database."""
        if self._member.standing.role != PRIMARY or self._member.standing.lease or self._member.settings.force:
            return
        found = store.read(KEY)
        if found is None:
            return
        lease = Lease.decode(found.data)
        holder = (
            "this node's id in another life"
            if lease.holder == self._member.id
            else f"{lease.holder} at {lease.address}"
        )
        raise ConfigError(
            f"{self._member.path}: {store.url} has a primary already: {holder}, term {lease.term}; give this one "
            "another archive, start it with `walcast follower … --replace`, or take the place of one that is gone "
            "with --force"
        )

    def keep(self, primary: bool) -> None:
        assert self.store is not None
        settings = self._member.settings
        log_term = self._member.serving.served.log.term if self._member.serving else self._member.standing.term
        node = d.Node(
            self._member.id,
            str(self._member.address),
            secrets.token_hex(8),
            settings.lease_s,
            auto=settings.auto and settings.eligible,
            priority=settings.priority,
        )
        self.keeper = Keeper(
            self.store,
            start(node, term=log_term, primary=primary, first=not self._member.standing.lease),
            act=self._member.act,
            changed=self._set_tenure,
            claim=self._claim,
            database_id=lambda: self._member.database_id,
            take_over=settings.database.continue_archive,
        )
        if settings.force and primary:
            self.keeper.feed(d.Wanted(now_s()))
        self._member.spawn(self._look_at_stream)
        self._member.spawn(self.keeper.run)  # last: should the one before fail, this is called again

    @property
    def lease_s(self) -> float:
        """The time of the lease that the set goes by; infinite without one."""
        lease = self.keeper.state.lease if self.keeper is not None else None
        if lease is not None:
            return lease.lease_s
        return self._member.settings.lease_s if self._member.settings.auto or self._member.standing.lease else math.inf

    def _set_tenure(self, state: d.State) -> None:
        """At once after each decision, before anything else happens."""
        if state.role is d.Role.PRIMARY and not state.handing:
            self._member.tenure.set(state.from_s, state.until_s)
        else:
            self._member.tenure.set(-math.inf, -math.inf)

    async def _claim(self, nonce: str) -> Claim:
        """How far this node is, with what the archive has."""
        following = self._member.following
        applier = following.applier if following else None
        if following is None or applier is None or not applier.position:
            raise Unavailable("there is no replica yet")
        if not self._is_known(following):
            raise Unavailable("it is not known yet to be a replica of the set's database")
        await following.catch_up_from_archive()
        priority, database = self._member.settings.priority, following.identity.asked
        return Claim(self._member.id, nonce, applier.term, applier.position.txid, priority, database)

    def _is_known(self, following: Following) -> bool:
        """Is this a replica of the database that the lease names? One without an id is so only by its position, which
        the primary has accepted."""
        lease, identity = self.keeper.state.lease if self.keeper is not None else None, following.identity
        if lease is None or not lease.database:
            return True
        return identity.is_replica if identity.id is None else identity.id == lease.database

    async def _look_at_stream(self) -> None:
        """A primary that says nothing may be gone; what this follower has may be too old."""
        while True:
            await asyncio.sleep(min(LOOK_S, self.lease_s / LOOKS))
            self.feed()

    def feed(self, *, ended: bool = False) -> None:
        """Tell the decisions how it goes with the stream, or the streams; `ended`: the primary has said that it is
        over."""
        following, serving = self._member.following, self._member.serving
        applier = following.applier if following else None
        if self.keeper is not None and serving is not None:
            connected = {follower.id for follower in serving.served.followers.connected if follower.candidate}
            self.keeper.feed(d.Followed(now_s(), tuple(sorted(connected))))
        if self.keeper is None or following is None or applier is None:
            return
        # Noticed early enough to claim: whoever notices only when the lease is over is not waited for.
        streaming = not ended and following.silent_s < min(SILENT_S, self.lease_s * SILENT)
        # How far behind it was when the primary was last heard of: after that nobody can tell.
        fit = bool(applier.position) and following.showing.behind_s <= self._member.settings.max_lag_s
        fit = fit and self._is_known(following)
        self.keeper.feed(d.Following(now_s(), streaming, applier.term, applier.position.txid, fit))
