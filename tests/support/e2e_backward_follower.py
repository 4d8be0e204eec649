"""A follower with a planted bug: after a commit readers see the one before it for a moment. Arguments as `walcast`."""

from __future__ import annotations

import time

from walcast.wal_writer import WalWriter
from walcast.walindex import IndexHeader
from walcast_node.cli import main

move_header = WalWriter._move_header


def backward(self: WalWriter, header: IndexHeader) -> None:
    before = self.header
    move_header(self, header)
    if before.mx_frame and header.mx_frame > before.mx_frame:
        time.sleep(0.01)
        move_header(self, before)
        time.sleep(0.01)
        move_header(self, header)


WalWriter._move_header = backward  # type: ignore[method-assign]
main()
