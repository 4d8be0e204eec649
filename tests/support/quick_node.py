"""walcast with its times a fifth as long, and faults on demand. Arguments as `walcast`; `env`: what is wrong, while the
file is there:

    STUCK_CAPTURE=FILE    capture hangs, as on a disk that does not answer a sync
    FULL_DISK=FILE        a follower's commits fail

and, for good, with PLANTED_BUG: "arrival": a replica is level whenever the primary says what is the newest, however old
that is.
"""

from __future__ import annotations

import errno
import importlib
import os
import time
from pathlib import Path
from typing import Any

SCALE = 0.2
TIMES = {
    "walcast_node.process.draining": ("CAPTURE_S", "FOLLOWERS_S"),
    "walcast_node.commands.primary": ("STOP_TIMEOUT_S",),
    "walcast_node.process.host": ("GRACE_S",),
    "walcast_primary.archiving.archiver": ("GIVE_UP_S",),
    "walcast_follower.subscribe.primary_client": ("SILENCE_S",),
    "walcast_follower.status_reporter": ("TICK_S",),
    "walcast_follower.subscribe.stream_session": ("LOOK_BOUND_S",),
    "walcast_node.failover.member_status": ("STALE_S", "STALE_AFTER_S"),
    "walcast_node.process.serving": ("LOOK_BOUND_S",),
    "walcast_primary.capture.capture_thread": ("IDLE_S", "LOOK_BOUND_S"),
    "walcast_primary.publish.served_database": ("HEARTBEAT_S",),
    "walcast.statusfile": ("QUIET_S", "STALE_AFTER_S", "LOOK_BOUND_S"),
}


def shorten(set_one: Any = setattr) -> None:
    """`set_one(module, name, value)` may undo it later."""
    for name, names in TIMES.items():
        module = importlib.import_module(name)
        for one in names:
            set_one(module, one, getattr(module, one) * SCALE)


def _hang_while_there(file: Path) -> None:
    from walcast_primary.capture.capture import Capture

    capture = Capture.capture

    def hanging(self: Capture) -> int:
        while file.exists():
            time.sleep(0.01)
        return capture(self)

    Capture.capture = hanging  # type: ignore[method-assign]


def _fail_while_there(file: Path) -> None:
    from walcast.wal_writer import WalWriter

    publish = WalWriter.publish

    def failing(self: WalWriter, *arguments: Any) -> None:
        if file.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        publish(self, *arguments)

    WalWriter.publish = failing  # type: ignore[method-assign]


def _level_on_arrival() -> None:
    from walcast_follower.status_reporter import Showing

    show = Showing.show

    def on_arrival(self: Showing, *arguments: Any, **facts: int) -> None:
        if "primary_txid" in facts:
            facts |= {"known_us": 0, "lag_us": 1000}
        show(self, *arguments, **facts)

    Showing.show = on_arrival  # type: ignore[method-assign]


def run() -> None:
    shorten()
    if "STUCK_CAPTURE" in os.environ:
        _hang_while_there(Path(os.environ["STUCK_CAPTURE"]))
    if "FULL_DISK" in os.environ:
        _fail_while_there(Path(os.environ["FULL_DISK"]))
    if os.environ.get("PLANTED_BUG") == "arrival":
        _level_on_arrival()
    from walcast_node.cli import main

    main()


if __name__ == "__main__":
    run()
