"""A follower whose scrubber is hasty, and to which a file's times say nothing. With SCRUB_BLIND it sees nothing at all:
a planted bug. Arguments as `walcast`."""

from __future__ import annotations

import os

from walcast import scrub
from walcast.filewatch import FileWatch, Wrote
from walcast_node.cli import main

for name in ("FIRST_S", "LEAST_PASS_S", "AGAIN_S", "AGAIN_MOST_S", "RETRY_S"):
    setattr(scrub, name, 0.05)
FileWatch.look = lambda self: Wrote.NOBODY  # type: ignore[method-assign]
if os.environ.get("SCRUB_BLIND"):
    scrub.mismatches = lambda reader, first, count, expected: []
main()
