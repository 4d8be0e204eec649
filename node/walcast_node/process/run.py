"""A node as a process: until a signal ends it, or the app that it has started; SIGHUP has it read files again. Its log
begins with what it is and goes by, and ends with a line that says so."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

import apsw

from walcast.errors import ConfigError
from walcast_node.config.settings import HostSettings
from walcast_node.failover.remembered_role import EVENT, remembered
from walcast_node.process.app_process import ENDING, FORWARDED, AppProcess, split_command
from walcast_node.process.event_loop import run_until_signal
from walcast_node.process.host import Host
from walcast_node.process.logs import take_everything
from walcast_node.process.orphans import reap_for_ever
from walcast_node.process.reload import reload_all
from walcast_node.process.stop_deadline import StopDeadline

APP_SHARE = 0.5  # of the time that a stop may take: the app's own end; what is left is for the archive

log = logging.getLogger("walcast.node")

NAMES_SHOWN = 10


def serve(settings: HostSettings, ready: Callable[[Host], None]) -> int:
    """Run it until SIGTERM or SIGINT, or until its app ends: the exit code. An app that ends has the node end with the
    app's code; what was not archived makes that 1 where it would be 0."""
    hosts: list[Host] = []
    apps: list[AppProcess] = []
    command = split_command(settings.command) if settings.command else None
    deadline = StopDeadline(settings.stop_timeout_s)
    take_everything()
    began_s = time.monotonic()
    for member in settings.members:
        # A role that is damaged, or cannot be read, is said when that database is begun, and stops no other.
        with suppress(ConfigError, OSError):
            if (surprise := remembered(member)) is not None:
                log.warning(EVENT, extra=surprise.facts())
    log.info("starting", extra=start_facts(settings))

    async def role(stop: asyncio.Event) -> None:
        host = Host(settings)
        hosts.append(host)
        reaping = asyncio.create_task(reap_for_ever(lambda: [pid for app in apps for pid in app.pids()]))
        try:
            await run_with_app(host, stop)
        finally:
            deadline.begin()  # also where nobody asked for the end
            reaping.cancel()

    async def run_with_app(host: Host, stop: asyncio.Event) -> None:
        if command is None:
            await host.run(stop, ready)
            return
        app = AppProcess(command, settings.stop_timeout_s * APP_SHARE)
        apps.append(app)
        ending = asyncio.create_task(_stop_with(app, host, stop, deadline))
        host.start_app = app.start
        try:
            await host.run(stop, ready)
        finally:
            if app.running:
                app.end()
                await app.ended.wait()
            ending.cancel()

    def forward(number: signal.Signals) -> bool:
        if number in ENDING:
            deadline.begin()
        return bool(apps) and apps[0].forward(number)

    ended: dict[str, object] = {"outcome": "failed"}  # why it did is said by whoever catches it
    try:
        run_until_signal(role, lambda: reload_all(hosts[0] if hosts else None), forward, FORWARDED if command else ())
        code = (apps[0].code or 0) if apps else 0
        code = code or int(bool(hosts) and not hosts[0].all_archived)
        ended = {"outcome": "stopped", "exit_code": code}
    finally:
        log.info("ended", extra=ended | {"seconds": round(time.monotonic() - began_s, 3)})
        deadline.reached()  # after the last line: whoever reads the log may hang
    return code


async def _stop_with(app: AppProcess, host: Host, stop: asyncio.Event, deadline: StopDeadline) -> None:
    await app.ended.wait()
    deadline.begin()
    host.drain_within_s -= app.ending_s
    stop.set()


def start_facts(settings: HostSettings) -> dict[str, object]:
    """Which program this is, and what it goes by; only what was said, or differs from machine to machine."""
    databases = [*settings.databases, *(member.database for member in settings.members)]
    archives = {d.archive if isinstance(d.archive, str) else d.archive.url for d in databases if d.archive}
    facts: dict[str, object] = {
        "version": version("walcast"),
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "config": settings.file and str(settings.file),
        "databases": _listed([str(d.path) for d in databases]),
        "folders": _listed([str(folder.folder.dir) for folder in settings.folders]),
        "archives": _listed(sorted(archives)),
        "listen": str(settings.listen),
        "http": settings.http and str(settings.http),
        "tls": settings.tls.cert is not None,
        "auto_failover": any(member.auto for member in settings.members),
        "log_summary_s": settings.summary_s,
    }
    return {name: value for name, value in facts.items() if value is not None and value != ""}


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
