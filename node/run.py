"""A node as a process: until a signal ends it; SIGHUP has it read files again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.freshness import reload_all
from node.host import Host
from node.process import run_until_signal
from node.settings import HostSettings
from walcast.access.credentials import Credentials


def serve(settings: HostSettings, ready: Callable[[Host], None]) -> None:
    """Run it until SIGTERM or SIGINT."""
    credentials: list[Credentials] = []

    async def role(stop: asyncio.Event) -> None:
        host = Host(settings)
        credentials.append(host.credentials)
        await host.run(stop, ready)

    run_until_signal(role, lambda: reload_all(credentials[0] if credentials else None))
