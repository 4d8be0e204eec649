"""The audit trail: one structured line, of the logger `walcast.audit`, for everything that somebody was let or not let
do. A denial, a copy, a change of role, a lease that changes hands, a configuration that is gone by.

Each line has `identity`, who it was, and where it is known `peer`, `method`, `database`, the terms, and the outcome.
"""

from __future__ import annotations

import logging

from walcast.rarely import Rarely

log = logging.getLogger("walcast.audit")

BURST = 5

_rarely = Rarely(log)


def record(event: str, identity: str, **facts: object) -> None:
    """What was done."""
    log.info(event, extra={"identity": identity} | facts)


def record_denied(identity: str, peer: str, method: str, database: str, needs: str) -> None:
    """Who was turned away: of whoever asks again and again, now and then."""
    facts = {"identity": identity, "peer": peer, "method": method, "database": database, "needs": needs}
    key = identity, peer.rpartition(":")[0], method
    _rarely.log(logging.WARNING, "denied", key, facts | {"outcome": "denied"}, burst=BURST)
