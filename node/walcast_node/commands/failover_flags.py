"""The flags that both sides of a replica set take, and the settings that come of them."""

from __future__ import annotations

from typing import Any

from walcast.appurl import AppUrlPolicy
from walcast.errors import ConfigError, ProtocolViolation
from walcast.identifiers import check_identifier
from walcast.redaction import shown_url
from walcast.wire import Address
from walcast_node.commands.options import F, flag
from walcast_node.config.numbers import Seconds
from walcast_node.config.settings import DatabaseSettings, MemberSettings


def failover_flags(function: F) -> F:
    """--auto-failover, --lease-time, --priority, --never-promote, --max-lag, --advertise, --id, --app-url,
    --allowed-app-url, --insecure-app-url."""
    for option in (
        flag(
            "--app-url",
            default=None,
            help="URL where the app on this host answers, to which apps on other hosts send requests that write.",
        ),
        flag(
            "--allowed-app-url",
            "allowed_app_urls",
            multiple=True,
            help="Send requests that write only to this app: https://HOST[/PREFIX], HOST or *.HOST; repeatable.",
        ),
        flag("--insecure-app-url", is_flag=True, help="Accept http:// app URLs beyond this machine, too."),
        flag("--id", "follower_id", default=None, help="Id of this node.  [default: made once, and kept]"),
        flag("--advertise", default=None, help="HOST:PORT where other nodes reach this one, if not at --listen."),
        flag(
            "--max-lag",
            default=60.0,
            type=Seconds(min=0),
            help="Do not take over when further behind than this, seconds.",
        ),
        flag("--never-promote", is_flag=True, help="Never make this node the primary."),
        flag(
            "--priority",
            default=0,
            type=int,
            help="Of followers that have the same data, the one with the highest priority takes over.",
        ),
        flag(
            "--lease-time",
            default=10.0,
            type=Seconds(1, 3600),
            help="How long a lease lasts that a primary does not renew, seconds.",
        ),
        flag(
            "--auto-failover",
            is_flag=True,
            help="Keep a lease in the archive, and take over when the primary's runs out.",
        ),
    ):
        function = option(function)
    return function


def member_settings(
    database: DatabaseSettings,
    role: str,
    *,
    auto_failover: bool,
    lease_time: float,
    priority: int,
    never_promote: bool,
    max_lag: float,
    advertise: str | None,
    follower_id: str | None,
    **more: Any,
) -> MemberSettings:
    """ConfigError for what does not go together."""
    if role == "primary" and never_promote:
        raise ConfigError("--never-promote is for followers: this node is to be the primary")
    if follower_id is not None:
        try:
            check_identifier("node id", follower_id)
        except ProtocolViolation as error:
            raise ConfigError(f"--id: {error}") from error
    return MemberSettings(
        database,
        role,
        follower_id=follower_id,
        auto=auto_failover,
        eligible=not never_promote,
        priority=priority,
        max_lag_s=max_lag,
        lease_s=lease_time,
        advertise=Address.parse(advertise) if advertise else None,
        **more,
    )


def app_urls(flags: dict[str, Any]) -> tuple[str, AppUrlPolicy]:
    """Where the app on this host answers, and which addresses of others are used; taken out of the flags. ConfigError
    when the one may not be used, or the others cannot be."""
    allowed, insecure = flags.pop("allowed_app_urls"), flags.pop("insecure_app_url")
    mine = AppUrlPolicy.of(insecure=insecure).check(flags.pop("app_url") or "")
    return mine, AppUrlPolicy.of(allowed or None, insecure=insecure)


def addresses(text: str) -> tuple[Address, ...]:
    """HOST:PORT, or several with commas between."""
    found = tuple(Address.parse(part.strip()) for part in text.split(",") if part.strip())
    if not found:
        raise ConfigError(f"{shown_url(text)} is not HOST:PORT, as in 127.0.0.1:7420")
    return found
