"""What a node would refuse at its start, found out without starting it: for `walcast config check`."""

from __future__ import annotations

from collections.abc import Iterator

from walcast.access.credentials import Credentials
from walcast.errors import ConfigError
from walcast_node.config.settings import HostSettings
from walcast_node.failover.reachable import check_ids, unreachable
from walcast_node.http.tls import certificate_for
from walcast_node.process.app_process import split_command


def problems(settings: HostSettings) -> Iterator[str]:
    """Of the process as a whole, then of the members of a replica set; databases are looked at by others."""
    credentials = Credentials(settings.tls)
    for check in (_listen, _http, _command, check_ids):
        try:
            check(settings, credentials)
        except ConfigError as error:
            yield str(error)
    for member in settings.members:
        if member.auto and not member.database.archive:
            yield f"{member.database.path}: --auto-failover needs an archive, where the lease is kept"
        elif member.auto and member.eligible and (why := unreachable(member, settings.listen, member.database.path)):
            yield why


def _listen(settings: HostSettings, credentials: Credentials) -> None:
    credentials.server(settings.listen)


def _http(settings: HostSettings, credentials: Credentials) -> None:
    if settings.http is not None:
        certificate_for(credentials, settings.http, loopback=settings.http.is_loopback)


def _command(settings: HostSettings, credentials: Credentials) -> None:
    if settings.command:
        split_command(settings.command)
