"""What a running node reads again without a restart: certificates, authorities and tokens when their files change;
those, and the rules of access and the log level of the configuration file, on SIGHUP.

Everything of the node that shows or checks a certificate or a token, gRPC in both directions and HTTP, takes it from
its one `Credentials`, and this is what reads those again. What cannot be used leaves the last ones in force; the log,
the audit trail and the status say so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from walcast import audit
from walcast.access.credentials import Credentials, Reload, say
from walcast.access.expiry import ExpiryWarnings
from walcast.errors import ConfigError
from walcast.rarely import Rarely
from walcast_node.process.logs import level_again

log = logging.getLogger("walcast.node")

LOOK_S = 3.0
SETTLE_S = 1.0  # in which files that have changed must stay as they are


async def keep_fresh(credentials: Credentials) -> None:
    """Look at the files every few seconds, and warn of certificates that end soon, for ever."""
    credentials.is_watched = True
    warnings = ExpiryWarnings()
    rarely, seen = Rarely(log), -1
    while True:
        wait_s = LOOK_S
        try:
            reload = await asyncio.to_thread(refresh, credentials, settled=True)
            wait_s = SETTLE_S if reload.waits else LOOK_S
            say(reload)
            if credentials.version != seen:
                seen = credentials.version
                warn_of_open_key(credentials)
            warn_of_expiry(credentials, warnings)
        except Exception as error:  # noqa: BLE001 - whatever it is, the node goes on with what it has
            with suppress(MemoryError):
                facts = {"error": f"{type(error).__name__}: {error}"}
                rarely.log(logging.ERROR, "cannot look at the credentials' files", type(error).__name__, facts)
        await asyncio.sleep(wait_s)


def refresh(credentials: Credentials, *, force: bool = False, settled: bool = False) -> Reload:
    """The one way in which files are read again: what came of it is in the audit trail."""
    reload = credentials.refresh(force=force, settled=settled)
    if reload.error is not None or reload.changed:
        refused = reload.error is not None
        facts = {"files": ", ".join(map(str, reload.changed)), "error": str(reload.error) if refused else ""}
        audit.record("credentials", f"user:{os.geteuid()}", **facts, outcome="refused" if refused else "reloaded")
    return reload


def warn_of_expiry(credentials: Credentials, warnings: ExpiryWarnings) -> None:
    """Log what ends within 30 days, once a day."""
    now = datetime.now(UTC)
    for path, fingerprint, not_after in credentials.loaded.expiring:
        if not warnings.due(fingerprint, not_after, now):
            continue
        facts = {"file": str(path), "not_after": not_after.strftime("%Y-%m-%dT%H:%M:%SZ")}
        if not_after < now:
            log.error("a certificate has expired: replace the file, it is read again by itself", extra=facts)
        else:
            facts["days"] = str((not_after - now).days)
            log.warning("a certificate ends soon: replace the file, it is read again by itself", extra=facts)


def warn_of_open_key(credentials: Credentials) -> None:
    """Log that others can read the private key: whoever has it can be this node."""
    path = credentials.tls.key
    mode = path.stat().st_mode if path is not None and path.exists() else 0
    if mode & stat.S_IRWXO:
        facts = {"file": str(path), "mode": f"{stat.S_IMODE(mode):04o}"}
        log.warning(
            "every user of this machine can read the private key, and so be this node: chmod 0600 it", extra=facts
        )


class Reloadable(Protocol):
    """A node, as SIGHUP sees it."""

    @property
    def credentials(self) -> Credentials: ...

    def reload_access(self) -> int | None: ...


def reload_all(node: Reloadable | None) -> None:
    """On SIGHUP: one line that says what was read again, and what could not be."""
    errors: list[str] = []
    files: list[str] = []
    rules: int | None = None
    if node is not None:
        reload = refresh(node.credentials, force=True)
        files = [str(path) for path in reload.changed]
        if reload.error is not None:
            errors.append(str(reload.error))
        try:
            rules = node.reload_access()
        except ConfigError as error:
            errors.append(str(error))
    try:
        level = level_again()
    except ConfigError as error:
        errors.append(str(error))
        level = None
    facts: dict[str, object] = {"files": ", ".join(files) or "none changed", "log_level": level or "unchanged"}
    if rules is not None:
        facts["access_rules"] = rules
    if errors:
        errors = list(dict.fromkeys(errors))  # one mistake in the configuration file concerns all that is read from it
        log.error("SIGHUP: not everything could be read again; what was before stays", extra=facts | {"errors": errors})
    else:
        log.info("SIGHUP: read again", extra=facts)
