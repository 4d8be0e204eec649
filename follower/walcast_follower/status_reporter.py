"""What a follower says of itself, in the status file, and what it remembers of its primary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from dataclasses import replace
from pathlib import Path

from walcast.appurl import ANY_APP_URL, AppUrlPolicy, known_app_url, parse_app_url
from walcast.errors import WalcastError
from walcast.position import Position
from walcast.rarely import Rarely
from walcast.shortage import disk_error
from walcast.statusfile import State, Status, StatusWriter, ahead_ns, earlier, read_last_status, sync_status
from walcast_follower.subscribe.primary_client import Client

log = logging.getLogger("walcast.follower")

TICK_S = 2.0
DURABLE_S = 30.0
WITH_STREAM = (State.STREAMING, State.CATCHING_UP)


class Showing:
    """One follower's status file, which outlives the process: how level it was is still known after a restart. Without
    that a follower does not take over, so it is made durable when the replica is level for the first time, and now and
    then: of what it says only the difference of two times counts."""

    def __init__(self, state_dir: Path, client: Client, app_urls: AppUrlPolicy = ANY_APP_URL) -> None:
        self._directory = state_dir
        self._app_urls = app_urls
        self._app_url_told: tuple[str, bool] | None = None
        self._writer: StatusWriter | None = None
        self._rarely = Rarely(log)
        self._failing = False
        before = read_last_status(state_dir)
        self.heard_ns = before.written_ns  # when the primary was last heard of, since the epoch; 0: never
        self._ahead_ns = ahead_ns()
        self._first_level = asyncio.Event()
        self._durable_s = -math.inf
        self._shared_s = -math.inf
        self.since_ns = time.time_ns()  # when the state became what it is
        self.is_told = False  # is there a stream, which tells of everything that the primary has?
        self.behind_bytes: int | None = None  # of the primary's log, while there is a stream; None: not known
        self.error: WalcastError | None = None  # why there is no stream; None: there is one, or nobody has tried yet
        self.over = False  # another one writes the file now
        self.status = Status(
            level_ns=before.level_ns,
            primary_txid=before.primary_txid,
            primary=str(client.primary),
            app_url="" if before.is_own or app_urls.refusal(before.app_url) else before.app_url,
            name=before.name or client.database,
            follower_id=client.follower_id,
            pid=os.getpid(),
        )

    @property
    def behind_s(self) -> float:
        """For how long the replica had not been level with the primary when that was last heard of; infinite: it never
        was."""
        level_ns = self.status.level_ns
        return max(0, self.heard_ns - level_ns) / 1e9 if level_ns else math.inf

    def show(
        self,
        state: State,
        term: int,
        position: Position,
        primary: str,
        *,
        behind_bytes: int | None = None,
        **facts: int,
    ) -> None:
        """To whoever reads the file; `facts` of a stream: `primary_txid`, `lag_us`, and `known_us`, how long ago it was
        known that the primary had nothing newer than `primary_txid`. Without that the replica is not level by it."""
        if self.over:
            return
        self.behind_bytes = behind_bytes
        self.is_told = state in WITH_STREAM and (self.is_told or "primary_txid" in facts)
        if self.is_told:
            self.error = None
        self._follow_clock()
        now = time.time_ns()
        old = self.status
        if state is not old.state:
            self.since_ns = now
        # Only the primary's word counts, not that nothing was heard of it; and it is as old as its look.
        known_us, level = facts.get("known_us"), old.level_ns
        if state is State.STREAMING and known_us is not None and position.txid >= facts["primary_txid"]:
            level = max(level, now - max(0, known_us) * 1000)
            self._first_level.set()
        self.status = replace(
            old,
            state=state,
            term=term,
            position=position,
            primary_txid=facts.get("primary_txid", old.primary_txid),
            lag_us=facts.get("lag_us", old.lag_us),
            level_ns=level,
            written_ns=now,
            primary=primary,
        )
        self._write(share=state is not old.state or time.monotonic() - self._shared_s >= TICK_S)

    def _write(self, *, share: bool) -> None:
        """A failure is logged and otherwise ignored: nothing in the follower depends on the file, and the next change
        is written again. `share`: the database may be new, or have another mode now."""
        try:
            if self._writer is None:
                self._writer = StatusWriter(self._directory)
            elif share:
                self._writer.share()
            if share:
                self._shared_s = time.monotonic()
            self._writer.write(self.status)
        except OSError as error:
            known = disk_error(error, self._directory / "status")
            self._failing = True
            self._rarely.log(logging.WARNING, "cannot write the status file", "status", {"error": str(known)})
            return
        if self._failing:
            self._failing = False
            self._rarely.over("the status file is written again", "status")

    def connected(self, name: str, app_url: str, *, nearby: bool = True) -> None:
        """To a primary, which calls the database so, and beside which the app answers at `app_url`; `nearby`: by an
        address of this machine. Shown with what is shown next; an address that may not be used is none."""
        why = self._refusal(app_url, nearby) if app_url else ""
        if why and (app_url, nearby) != self._app_url_told:
            log.warning("where the primary's app answers is not used", extra={"error": why})
        self._app_url_told = app_url, nearby
        used = "" if why else known_app_url(app_url)
        self.status = replace(self.status, name=name, app_url=used, app_url_refused=why)

    def _refusal(self, app_url: str, nearby: bool) -> str:
        """Why that is not used; "" when it is."""
        why = self._app_urls.refusal(app_url)
        if not why and not nearby and parse_app_url(app_url).is_loopback and not self._app_urls.lists(app_url):
            why = (
                f"{app_url} is on this machine, and the primary is on another one: let --app-url name the primary's "
                "host, or allow it here (--allowed-app-url) if it leads there"
            )
        return why

    def _follow_clock(self) -> None:
        """A wall clock that was set back makes nothing younger."""
        before, self._ahead_ns = self._ahead_ns, ahead_ns()
        back_ns = before - self._ahead_ns
        level_ns = earlier(self.status.level_ns, back_ns)
        if level_ns != self.status.level_ns:
            self.status = replace(self.status, level_ns=level_ns)
            self.heard_ns = earlier(self.heard_ns, back_ns)

    def hear(self) -> None:
        """The primary was heard of."""
        self.heard_ns = time.time_ns()

    async def keep_showing(self) -> None:
        """Show now and then that we are alive, and since when this replica is known to have been level."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await (self._first_level.wait() if self._durable_s == -math.inf else asyncio.sleep(TICK_S))
            await self._make_durable_when_due()
            now = self.status
            if not 0 <= time.time_ns() - now.written_ns <= TICK_S * 0.9e9:
                self.show(now.state, now.term, now.position, now.primary, behind_bytes=self.behind_bytes)

    async def _make_durable_when_due(self) -> None:
        if not self._first_level.is_set() or time.monotonic() - self._durable_s < DURABLE_S:
            return
        self._durable_s = time.monotonic()
        try:
            await asyncio.to_thread(sync_status, self._directory)
        except OSError as error:
            known = disk_error(error, self._directory / "status")
            self._rarely.log(logging.WARNING, "cannot sync the status file", "status sync", {"error": str(known)})

    def close(self) -> None:
        """The last word was said."""
        self.over = True
        if self._writer is not None:
            self._writer.close()
