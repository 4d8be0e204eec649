"""What of a node's status is for somebody who may see some of its databases. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from walcast.rpc import replication_pb2 as pb

Sees = Callable[[str], bool]
"""May whoever asks see the status of the database of that name; of "", what concerns all of them?"""


def visible(reply: pb.StatusReply, sees: Sees) -> pb.StatusReply | None:
    """The status without the databases that are not for whoever asks, so that nothing in it comes from them; None for
    somebody who may see nothing. The certificate of the node concerns all databases."""
    shown = [database for database in reply.databases if sees(database.name)]
    if len(shown) == len(reply.databases):
        return reply if shown or sees("") else None
    if not shown:
        return None
    return pb.StatusReply(
        role=shown[0].role or reply.role,
        term=max([1, *(database.term for database in shown)]),
        protocol=reply.protocol,
        databases=shown,
    )


def visible_names(names: Iterable[str], sees: Sees) -> list[str]:
    """Those that whoever asks may know of, in order."""
    return sorted(name for name in names if sees(name))
