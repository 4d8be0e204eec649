"""Under which address and id other nodes know a member of a replica set, and whether that can be."""

from __future__ import annotations

from pathlib import Path

from walcast.access.credentials import Credentials
from walcast.errors import ConfigError
from walcast.wire import Address
from walcast_node.config.settings import HostSettings, MemberSettings

EVERYWHERE = ("0.0.0.0", "::", "[::]")


def unreachable(member: MemberSettings, listening: Address, path: Path) -> str | None:
    """Why others cannot come to where this node would say that it is; `path` is its database's."""
    far = any(not primary.is_loopback for primary in member.primaries)
    if member.advertise or (listening.host not in EVERYWHERE and not (far and listening.is_loopback)):
        return None
    return f"{path}: other nodes cannot reach this one at {listening}; say where: --advertise HOST:PORT"


def check_ids(settings: HostSettings, credentials: Credentials) -> None:
    """A node is known by its certificate: ConfigError where it was given another id."""
    certified = credentials.node_id
    for member in settings.members:
        if certified and member.follower_id not in (None, certified):
            what = f"--id {member.follower_id}: the certificate in {settings.tls.cert} is of the node {certified}"
            raise ConfigError(f"{what}; leave --id out, or make a certificate for that id")
