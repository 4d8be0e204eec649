"""What a primary says in the status file beside its database, for the apps on its host; a follower writes its own."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from walcast import wire
from walcast.rarely import Rarely
from walcast.shortage import disk_error
from walcast.statedir import state_dir
from walcast.statusfile import State, Status, StatusWriter
from walcast_node.process.serving import Serving

SHOW_S = 1.0

_rarely = Rarely(logging.getLogger("walcast.primary"))
_failing: set[Path] = set()


def show_primary(
    serving: Serving,
    state: State,
    address: wire.Address,
    node_id: str,
    app_url: str,
    *,
    level_ns: int | None = None,
    over: bool = False,
) -> None:
    """That the database is the primary's, or was; to be repeated every `SHOW_S`, so that it is seen to be alive.
    `level_ns`: until when what is committed here was the newest there is; None: it is so now. `over`: this is the last
    word. What cannot be written is logged rarely; it is tried again the next time."""
    path = state_dir(serving.database.path) / "status"
    try:
        _show(serving, state, address, node_id, app_url, level_ns=level_ns, over=over)
    except OSError as error:  # nothing in the primary depends on the file
        facts = {"error": str(disk_error(error, path))}
        _rarely.log(logging.WARNING, "cannot write the status file", path, facts)
        _failing.add(path)
    else:
        if path in _failing:
            _failing.discard(path)
            _rarely.over("the status file is written again", path, {"path": str(path)})


def _show(
    serving: Serving,
    state: State,
    address: wire.Address,
    node_id: str,
    app_url: str,
    *,
    level_ns: int | None = None,
    over: bool = False,
) -> None:
    now, log = time.time_ns(), serving.served.log
    left_ms = serving.database.tenure.left_ms
    writer = StatusWriter(state_dir(serving.database.path))
    try:
        writer.write(
            Status(
                state=state,
                term=log.term,
                position=log.position,
                primary_txid=log.position.txid,
                level_ns=now if level_ns is None else level_ns,
                written_ns=0 if over else now,
                until_ns=now + left_ms * 10**6 if left_ms else 0,
                pid=os.getpid(),
                primary=str(address),
                name=serving.settings.name,
                follower_id=node_id,
                app_url=app_url,
            )
        )
    finally:
        writer.close()
