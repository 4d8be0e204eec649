"""What is wrong with a node: of which kind, which anybody may know, and in words, which name files and hosts."""

from __future__ import annotations

from dataclasses import dataclass

from walcast.remedies import FailureKind
from walcast_node.failover.member import Member
from walcast_node.failover.member_status import missing_kind
from walcast_node.process.serving import Serving, trouble_kind


@dataclass(frozen=True, slots=True)
class Failure:
    """`text` is for operators: it may name paths, databases and hosts. `database` is the name of the one that it is
    about; "" when it is about all of them."""

    kind: FailureKind
    text: str
    database: str


def serving_failure(serving: Serving) -> Failure | None:
    """Of a database that is served."""
    text = serving.trouble
    if text is None:
        return None
    return Failure(FailureKind(trouble_kind(serving)), text, serving.settings.name)


def member_failure(member: Member) -> Failure | None:
    """Of a member of a replica set, in the role that it has now."""
    serving, text = member.serving, member.trouble
    if text is None:
        return None
    if serving is None:
        return Failure(missing_kind(member), text, member.name)
    failure = serving_failure(serving)
    return failure or Failure(FailureKind.FENCED, text, member.name)
