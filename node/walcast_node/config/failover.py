"""What a configuration file says of failover: this node's flags of the same names, at the top of the file.

auto-failover: true
lease-time: 10s
priority: 1
never-promote: false
max-lag: 1m
advertise: 10.0.0.1:7420
id: edge-1
app-url: https://edge-1.example.com
allowed-app-urls: [https://*.example.com]
insecure-app-url: false
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import click
import yaml
from click.core import ParameterSource

from walcast.appurl import AppUrlPolicy, check_app_url
from walcast.wire import Address
from walcast_node.config.yaml_values import Keys, Yaml

KEYS = frozenset(
    [
        "auto-failover", "lease-time", "priority", "never-promote", "max-lag", "advertise", "id",
        "app-url", "allowed-app-urls", "insecure-app-url",
    ]
)  # fmt: skip
LEASE_LEAST_S, LEASE_MOST_S = 1.0, 3600.0
ID_MOST_BYTES = 100


@dataclass(frozen=True, slots=True)
class FailoverConfig:
    """None where the file says nothing. Times in seconds."""

    auto_failover: bool | None = None
    lease_time_s: float | None = None
    priority: int | None = None
    never_promote: bool | None = None
    max_lag_s: float | None = None
    advertise: Address | None = None
    id: str | None = None
    app_url: str | None = None
    allowed_app_urls: tuple[str, ...] | None = None
    insecure_app_url: bool | None = None

    def facts(self) -> dict[str, Any] | None:
        """What is said; None when nothing is."""
        said = {key: value for key, value in asdict(self).items() if value is not None}
        return said | ({"advertise": str(self.advertise)} if self.advertise else {}) or None


def read_failover(file: Yaml, keys: Keys) -> FailoverConfig:
    """ConfigError, with the line, for a value that the flag of the name would not take."""

    def lease_s(node: yaml.Node) -> float:
        seconds = file.seconds(node)
        if not LEASE_LEAST_S <= seconds <= LEASE_MOST_S:
            raise file.error(node, f"a lease lasts {LEASE_LEAST_S:g} s to {LEASE_MOST_S:g} s, not {seconds:g} s")
        return seconds

    def priority(node: yaml.Node) -> int:
        text = file.text(node)
        try:
            return int(text)
        except ValueError:
            raise file.error(node, f"{file.shown(node)} is not a whole number") from None

    def address(node: yaml.Node) -> Address:
        text = file.text(node)
        return file.parsed(node, lambda: Address.parse(text))

    def identity(node: yaml.Node) -> str:
        text = file.text(node)
        if not text.isprintable() or not 0 < len(text.encode()) <= ID_MOST_BYTES:
            raise file.error(node, f"{file.shown(node)} is not an id: 1 to {ID_MOST_BYTES} bytes, printable")
        return text

    def url(node: yaml.Node) -> str:
        text = file.text(node)
        return file.parsed(node, lambda: check_app_url(text))

    def allowed(node: yaml.Node) -> tuple[str, ...]:
        found = tuple(file.text(item) for item in file.items(node))
        file.parsed(node, lambda: AppUrlPolicy.of(found, insecure=True))  # https is asked for with the flags
        return found

    return FailoverConfig(
        auto_failover=file.optional(keys, "auto-failover", file.boolean),
        lease_time_s=file.optional(keys, "lease-time", lease_s),
        priority=file.optional(keys, "priority", priority),
        never_promote=file.optional(keys, "never-promote", file.boolean),
        max_lag_s=file.optional(keys, "max-lag", lambda node: file.seconds(node, zero=True)),
        advertise=file.optional(keys, "advertise", address),
        id=file.optional(keys, "id", identity),
        app_url=file.optional(keys, "app-url", url),
        allowed_app_urls=file.optional(keys, "allowed-app-urls", allowed),
        insecure_app_url=file.optional(keys, "insecure-app-url", file.boolean),
    )


def flags_over_file(flags: dict[str, Any], told: FailoverConfig) -> dict[str, Any]:
    """The flags of this command, those of failover from the file where nobody gave them; by option or environment."""
    said = {name: value for name, value in _as_flags(told).items() if value is not None}
    if not said:
        return flags
    source = click.get_current_context().get_parameter_source
    return flags | {name: value for name, value in said.items() if source(name) is ParameterSource.DEFAULT}


def _as_flags(told: FailoverConfig) -> dict[str, Any]:
    return {
        "auto_failover": told.auto_failover,
        "lease_time": told.lease_time_s,
        "priority": told.priority,
        "never_promote": told.never_promote,
        "max_lag": told.max_lag_s,
        "advertise": str(told.advertise) if told.advertise else None,
        "follower_id": told.id,
        "app_url": told.app_url,
        "allowed_app_urls": told.allowed_app_urls,
        "insecure_app_url": told.insecure_app_url,
    }
