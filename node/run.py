"""A node as a process: until a signal ends it, or the app that it has started; SIGHUP has it read files again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from node.app_process import FORWARDED, AppProcess, split_command
from node.freshness import reload_all
from node.host import Host
from node.process import run_until_signal
from node.settings import HostSettings

APP_SHARE = 0.5  # of the time that a stop may take: the app's own end; what is left is for the archive


def serve(settings: HostSettings, ready: Callable[[Host], None]) -> int:
    """Run it until SIGTERM or SIGINT, or until its app ends: the exit code. An app that ends has the node end with the
    app's code; what was not archived makes that 1 where it would be 0."""
    hosts: list[Host] = []
    apps: list[AppProcess] = []
    command = split_command(settings.command) if settings.command else None

    async def role(stop: asyncio.Event) -> None:
        host = Host(settings)
        hosts.append(host)
        if command is None:
            await host.run(stop, ready)
            return
        app = AppProcess(command, settings.stop_timeout_s * APP_SHARE)
        apps.append(app)
        ending = asyncio.create_task(_stop_with(app, host, stop))
        host.start_app = app.start
        try:
            await host.run(stop, ready)
        finally:
            if app.running:
                app.end()
                await app.ended.wait()
            ending.cancel()

    def forward(number: signal.Signals) -> bool:
        return bool(apps) and apps[0].forward(number)

    run_until_signal(role, lambda: reload_all(hosts[0] if hosts else None), forward, FORWARDED if command else ())
    code = (apps[0].code or 0) if apps else 0
    return code or int(bool(hosts) and not hosts[0].all_archived)


async def _stop_with(app: AppProcess, host: Host, stop: asyncio.Event) -> None:
    await app.ended.wait()
    host.drain_within_s -= app.ending_s
    stop.set()
