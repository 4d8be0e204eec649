"""A follower that dies, as by kill -9, at one step of becoming a copy of another database. Arguments as `walcast`.

DIES=forgotten: the old id is gone, nothing is committed. DIES=committed: the new content is there, the new id is not.
DIES=named: the id of a replica that is not in its place yet is written.
"""

from __future__ import annotations

import os
from typing import Any

from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap import new_replica
from walcast_node.cli import main


def die(*_: Any, **__: Any) -> Any:
    os._exit(9)


match os.environ["DIES"]:
    case "forgotten":
        Applier.commit = die  # type: ignore[method-assign]
    case "committed":
        Applier.sync = die  # type: ignore[method-assign]
    case "named":
        new_replica.put_in_place = die
main()
