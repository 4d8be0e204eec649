"""What `/metrics` tells Prometheus of a process: which version it is, and when its certificates end."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from walcast.access.credentials import Credentials
from walcast.wire import Tls


class _Process(Collector):
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily("walcast_build", "The version that runs.", value={"version": version("walcast")})
        ends = GaugeMetricFamily(
            "walcast_certificate_expiry_timestamp_seconds",
            "When a certificate ends, as Unix time; of several in one file the first to end.",
            labels=["certificate"],
        )
        for name, end in certificate_ends(self._credentials).items():
            ends.add_metric([name], end.timestamp())
        yield ends


def certificate_ends(credentials: Credentials) -> dict[str, datetime]:
    """By the name of the flag that gives the file, as in `tls-cert`."""
    files = _files(credentials.tls)
    ends: dict[str, datetime] = {}
    for path, _, end in credentials.loaded.expiring:
        name = files.get(path)
        if name is not None:
            ends[name] = min(end, ends.get(name, end))
    return ends


def _files(tls: Tls) -> dict[Path | None, str]:
    return {tls.cert: "tls-cert", tls.ca: "tls-ca", tls.peer_ca: "tls-peer-ca", tls.client_ca: "tls-client-ca"}


def exposition(credentials: Credentials) -> bytes:
    """All of it in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Process(credentials))
    return generate_latest(registry)
