"""An applier in a process of its own, made to be killed.

    apply_victim.py REPLICA STATE TRANSACTIONS [CRASH_AT]

TRANSACTIONS is a pickled list of transactions. It applies those that follow the replica's position and prints each
position once it is committed, after "ready" and the position it started from. CRASH_AT names a step at which it kills
itself in its last transaction.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from walcast import wal_writer
from walcast.errors import WalcastError
from walcast.wal_writer import WalWriter
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.position_journal import Journal


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        die()

    return wrapped


def half(fd: int, data: memoryview, offset: int) -> None:
    os.pwrite(fd, data[: len(data) // 2], offset)
    die()


def tear_header(writer: WalWriter, header: Any) -> None:
    writer._files.block(0)[48:96] = header.encode()
    die()


STEPS: dict[str, Callable[[], None]] = {
    "before the journal": lambda: setattr(Journal, "append", die),
    "after the journal": lambda: setattr(Journal, "append", after(Journal.append)),
    "inside the hashes": lambda: setattr(WalWriter, "_insert_hashes", after(WalWriter._insert_hashes)),
    "inside the frames": lambda: setattr(wal_writer, "_write", half),
    "after the frames": lambda: setattr(WalWriter, "_flush", after(WalWriter._flush)),
    "between the header's copies": lambda: setattr(WalWriter, "_move_header", tear_header),
    "after the header": lambda: setattr(WalWriter, "_move_header", after(WalWriter._move_header)),
    "inside a restart": lambda: setattr(WalWriter, "_restart_locked", die),
    "after a restart": lambda: setattr(WalWriter, "_restart_locked", after(WalWriter._restart_locked)),
    "before the WAL's header": lambda: setattr(WalWriter, "_write_wal_header", die),
    "after the WAL's header": lambda: setattr(WalWriter, "_write_wal_header", after(WalWriter._write_wal_header)),
}
RESTARTING = ("inside a restart", "after a restart", "before the WAL's header", "after the WAL's header")


def main() -> None:
    path, state, file, *crash_at = sys.argv[1:]
    try:
        applier = Applier.open(Path(path), Path(state))
    except WalcastError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return
    transactions = pickle.loads(Path(file).read_bytes())
    applier.restart_frames = 30
    print(f"ready {applier.position}", flush=True)
    todo = [t for t in transactions if t.position.txid > applier.position.txid]
    for i, transaction in enumerate(todo):
        if crash_at and i == len(todo) - 1:
            STEPS[crash_at[0]]()
            end = time.monotonic() + 30.0
            while crash_at[0] in RESTARTING and time.monotonic() < end:
                if applier.checkpoint().complete and applier.restart_wal_if_possible():
                    break
        transaction.apply(applier)
        print(applier.position, flush=True)
        if i % 3 == 2:
            applier.checkpoint()


if __name__ == "__main__":
    main()
