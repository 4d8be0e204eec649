"""What may be wrong with a database, as words for programs, and what an operator does about each."""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """What a load balancer or a stranger is told."""

    NOT_CAPTURED = "not-captured"
    DAMAGED = "damaged"
    FENCED = "fenced"
    STALE = "stale"
    NOT_APPLIED = "not-applied"
    NO_REPLICA = "no-replica"
    NOT_MADE = "not-made"
    NOT_SERVED = "not-served"
    NOT_ARCHIVED = "not-archived"
    STOPPED = "stopped"
    FOLLOWER_NOW = "follower-now"
    APP_URL_REFUSED = "app-url-refused"
    WAL_HELD = "wal-held"
    OTHER = "other"


NOT_THERE = (FailureKind.NOT_SERVED, FailureKind.NOT_MADE)  # so that there is nothing to archive either

_REMEDIES = {
    FailureKind.NOT_CAPTURED: "Mend what the text names: room on the disk, rights, a transaction that does not end. "
    "The primary goes on by itself.",
    FailureKind.DAMAGED: "On a primary: stop the app, restore the last good state beside the database (walcast restore "
    "URL -o NEW.db), and compare. A replica is mended from its primary by itself.",
    FailureKind.FENCED: "See that the archive can be reached from this node, or promote a follower, on its host: "
    "walcast promote {path}",
    FailureKind.STALE: "See that the primary answers: walcast status {primary}. If it is gone for good, on this host: "
    "walcast promote {path} --force",
    FailureKind.NOT_APPLIED: "Mend what the text names on this host, as room on the disk; the follower goes on by "
    "itself.",
    FailureKind.NO_REPLICA: "Mend what the text names; the first copy is tried again by itself. See that the primary "
    "answers: walcast status {primary}",
    FailureKind.NOT_MADE: "Start the app, which makes the database: it is served from then on.",
    FailureKind.NOT_SERVED: "Mend what the text names; the database is tried again by itself.",
    FailureKind.NOT_ARCHIVED: "See that {url} can be reached and written to with the credentials of this node; uploads "
    "go on by themselves.",
    FailureKind.STOPPED: "Start it again, with the archive and the flags that it had: walcast {role} {path}{flags}",
    FailureKind.FOLLOWER_NOW: "To make it the primary: walcast promote {path}. To leave it a follower, start it as "
    "one: walcast follower {path} --primary {primary}",
    FailureKind.APP_URL_REFUSED: "Allow the address on this node with --allowed-app-url, or change --app-url on the "
    "primary.",
    FailureKind.WAL_HELD: "End what the text names, or give it a replica to read (walcast follower). Then the WAL "
    "stops growing, and PRAGMA wal_checkpoint(TRUNCATE), by any app, gives its room back.",
    FailureKind.OTHER: "walcast repair {path} shows role, term and lease.",
}


def remedy(kind: str, **facts: str) -> str:
    """What to do; `facts` stand for what the texts above name."""
    known = FailureKind(kind) if kind in set(FailureKind) else FailureKind.OTHER
    names = {"path": "DB", "primary": "HOST:PORT", "url": "the archive", "role": "primary", "flags": ""}
    return _REMEDIES[known].format(**names | {name: value for name, value in facts.items() if value})
