"""A follower with a planted bug: for a moment readers see the first half of a transaction. Arguments as `walcast`."""

from __future__ import annotations

import time
from dataclasses import replace

from walcast.wal_writer import WalWriter
from walcast.walindex import IndexHeader
from walcast_node.cli import main

move_header = WalWriter._move_header


def torn(self: WalWriter, header: IndexHeader) -> None:
    half = (self.header.mx_frame + header.mx_frame) // 2
    if half > self.header.mx_frame:
        before = self.header
        move_header(self, replace(header, mx_frame=half))
        self.header = before
        time.sleep(0.01)
    move_header(self, header)


WalWriter._move_header = torn  # type: ignore[method-assign]
main()
