"""What a member says of itself: to status, and in the status file that apps on its host read."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from walcast import wire
from walcast.errors import DiskFull, Exhausted, WalcastError
from walcast.remedies import FailureKind
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import state_dir
from walcast.statusfile import STALE_AFTER_S, State, Status, doubled, read_last_status
from walcast.terms import gaps_between
from walcast_node.failover import state as d
from walcast_node.process.primary_status_file import SHOW_S, show_primary
from walcast_primary.tenure import Tenure, now_s

if TYPE_CHECKING:
    from walcast_node.failover.member import Member

SHOWS = 5  # in a lease's time
STALE_S = 10.0  # a follower that says it is well shows its readers nothing that it knows to be older
FENCED = "fenced"


def database_status(member: Member, trouble: str | None) -> pb.DatabaseStatus:
    """For the Status call."""
    if member.serving is not None:
        status = member.serving.status()
        status.role = "primary" if member.tenure.holds else FENCED
        status.term = max(status.term, member.standing.term)
        status.app_url = member.host.settings.app_url
        status.trouble_kind = status.trouble_kind or (FailureKind.FENCED if trouble else "")
        status.state_since_ms = member.shown.since_ms or status.state_since_ms
    else:
        begins = member.following is None and (member.awaits_app.is_set() or member.restore_error is not None)
        role = "primary" if begins else "follower"
        status = pb.DatabaseStatus(
            name=member.name, path=str(member.path.absolute()), role=role, term=member.standing.term
        )
        following = member.following
        if following is not None:
            now = following.status
            status.database_id = following.identity.asked
            status.position.CopyFrom(wire.position_message(now.position, now.term))
            status.term = max(status.term, now.term)
            status.primary, status.state = now.primary, str(now.state)
            status.state_since_ms = following.showing.since_ns // 10**6
            status.primary_txid = now.primary_txid
            if now.level_ns:
                status.lag_ms = now.lag_ms(time.time_ns())
            if following.showing.is_told:
                here, there = now.position.txid, now.primary_txid
                status.lag_txids = max(0, there - here - gaps_between(following.history, here, there))
                if status.lag_txids == 0 or following.showing.behind_bytes is not None:
                    status.lag_bytes = (following.showing.behind_bytes or 0) if status.lag_txids else 0
            status.app_url, status.app_url_refused = now.app_url, now.app_url_refused
            applier = following.applier
            if applier is not None:
                status.page_size, status.pages, status.wal_bytes = (
                    applier.page_size,
                    applier.commit_pages,
                    applier.wal_bytes,
                )
        else:
            status.state_since_ms = member.waits_since_ms
        status.trouble_kind = missing_kind(member)
    status.trouble = trouble or ""
    if not trouble:
        status.trouble_kind = ""
    lease = member.lease
    if lease is not None:
        status.lease.CopyFrom(lease)
    return status


def lease_status(state: d.State, tenure: Tenure) -> pb.LeaseStatus | None:
    """The newest lease that was seen."""
    lease = state.lease
    if lease is None:
        return None
    left_ms = int((state.until_s - now_s()) * 1000) if tenure.holds and state.until_s > 0 else 0
    return pb.LeaseStatus(
        holder=lease.holder, address=lease.address, lease_ms=int(lease.lease_s * 1000), left_ms=max(0, left_ms)
    )


def fenced_words(member: Member) -> str:
    """Why writers are held, and what to do."""
    keeper = member.keeper
    why = keeper.error if keeper is not None and keeper.error else "it does not hold the lease"
    return (
        f"fenced: apps cannot write to {member.path} ({why}); see that the archive can be reached, "
        "or promote a follower: walcast promote DB"
    )


def missing_kind(member: Member) -> FailureKind:
    """Of what is wrong with a member that does not serve: is the app to be looked at, the primary, or this node?"""
    following = member.following
    if following is None and member.restore_error is not None:
        return FailureKind.NOT_SERVED
    if following is None:
        return FailureKind.NOT_MADE if member.awaits_app.is_set() else FailureKind.OTHER
    if isinstance(following.showing.error, DiskFull | Exhausted):
        return FailureKind.NOT_APPLIED
    return FailureKind.NO_REPLICA if following.status.state is State.BOOTSTRAPPING else FailureKind.STALE


def stale_words(path: Path, status: Status, now_ns: int, error: WalcastError | None = None) -> str | None:
    """Why a follower's readers may see what is older than STALE_S, or soon will; None: they do not, or the first copy
    is under way. `error`: why there is no stream. The text changes only now and then."""
    why = f": {error}" if error is not None else ""
    if status.state is State.BOOTSTRAPPING:
        return f"{path}: no replica yet{why}" if why else None
    if status.state not in (State.STREAMING, State.CATCHING_UP):
        return f"{path}: {status.state}{why}"
    if not status.is_live(now_ns):
        return f"{path}: this process stands still: it has not said how far the replica is for {STALE_AFTER_S:.0f} s"
    if not status.level_ns:
        return f"{path}: not level with the primary yet"
    lag_s = status.lag_ms(now_ns) / 1000
    if lag_s <= STALE_S:
        return None
    if math.isinf(lag_s):
        return f"{path}: the clock was set back, so nobody knows how old the replica is until the primary is heard of"
    return f"{path}: may be more than {doubled(lag_s, STALE_S)} s behind the primary's commits ({status.state})"


class Shown:
    """The status file of a member that is the primary; a follower writes its own."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._was_primary_s: float | None = None
        self._state: State | None = None
        self.since_ms = 0  # when it became the primary, or was fenced; 0: neither

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.show()
            await asyncio.sleep(min(SHOW_S, self._member.leasing.lease_s / SHOWS))  # what is left is told by it, too

    def show(self) -> None:
        """Now."""
        if self._member.serving is None:
            self._state = None
        else:
            self._write(State.PRIMARY if self._member.tenure.holds else State.FENCED)

    def stopped(self) -> None:
        """The last word."""
        self._write(State.PRIMARY, over=True)

    def _write(self, state: State, *, over: bool = False) -> None:
        member = self._member
        assert member.serving is not None
        if state is not self._state:
            self._state, self.since_ms = state, int(time.time() * 1000)
        app_url = member.host.settings.app_url
        show_primary(member.serving, state, member.address, member.id, app_url, level_ns=self._level_ns(), over=over)

    def _level_ns(self) -> int | None:
        """Since when it does not act as the primary: while it is fenced another one may, and what is here is not known
        to be the newest. None: it does now."""
        now = now_s()
        if self._member.tenure.holds:
            self._was_primary_s = now
            return None
        if self._was_primary_s is None:
            return read_last_status(state_dir(self._member.path)).level_ns
        return time.time_ns() - int((now - self._was_primary_s) * 1e9)
