"""A primary and an app with `synchronous=OFF`, whose WAL has restarted behind the app's own checkpoint.

power_cut_machine.py FOLDER ROWS        says `ready` when the WAL has restarted; until its standard input ends
"""

from __future__ import annotations

import sys
from pathlib import Path

from support.crash_images import machine
from support.nodes import poll


def main() -> None:
    with machine(Path(sys.argv[1])) as app:
        app.commit(int(sys.argv[2]), filler=2000)

        def copied_back() -> bool:
            _, frames, copied = app.app.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()[0]
            return bool(frames == copied and app.database.loop._pace._place[1:] == (frames, True))

        assert poll(copied_back, 10.0), "the WAL is not copied back"
        app.commit()
        assert app.frames < 10, "the WAL did not restart"
        print("ready", flush=True)
        sys.stdin.read()


main()
