"""What a member says of itself: to status, and in the status file that apps on its host read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from node.failover import state as d
from node.shown import SHOW_S, show_primary
from primary.tenure import Tenure, now_s
from walcast import wire
from walcast.rpc import replication_pb2 as pb
from walcast.statusfile import State

if TYPE_CHECKING:
    from node.failover.member import Member

SHOWS = 5  # in a lease's time
FENCED = "fenced"


def database_status(member: Member, trouble: str | None) -> pb.DatabaseStatus:
    """For the Status call."""
    if member.serving is not None:
        status = member.serving.status()
        status.role = "primary" if member.tenure.holds else FENCED
        status.term = max(status.term, member.standing.term)
    else:
        status = pb.DatabaseStatus(name=member.name, path=str(member.path), role="follower", term=member.standing.term)
        following = member.following
        if following is not None:
            now = following.status
            status.position.CopyFrom(wire.position_message(now.position, now.term))
            status.term = max(status.term, now.term)
            status.primary, status.state = now.primary, str(now.state)
            applier = following.applier
            if applier is not None:
                status.page_size, status.pages, status.wal_bytes = (
                    applier.page_size,
                    applier.commit_pages,
                    applier.wal_bytes,
                )
    status.trouble = trouble or ""
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


class Shown:
    """The status file of a member that is the primary; a follower writes its own."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.show()
            await asyncio.sleep(min(SHOW_S, self._member.leasing.lease_s / SHOWS))  # what is left is told by it, too

    def show(self) -> None:
        """Now."""
        if self._member.serving is not None:
            self._write(State.PRIMARY if self._member.tenure.holds else State.FENCED)

    def stopped(self) -> None:
        """The last word."""
        self._write(State.PRIMARY, over=True)

    def _write(self, state: State, *, over: bool = False) -> None:
        member = self._member
        assert member.serving is not None
        show_primary(member.serving, state, member.address, member.id, member.host.settings.app_url, over=over)
