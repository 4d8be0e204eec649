"""What a primary says in the status file beside its database, for the apps on its host; a follower writes its own."""

from __future__ import annotations

import os
import time

from node.serving import Serving
from walcast import wire
from walcast.statedir import state_dir
from walcast.statusfile import State, Status, StatusWriter

SHOW_S = 1.0


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
    word."""
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
