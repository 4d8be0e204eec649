"""The follower as a process."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from follower.client import Client
from follower.following import Following, check_replica
from node.progress import Progress
from walcast import wire
from walcast.errors import ConfigError
from walcast.statedir import state_dir
from walcast.store import open_store


@dataclass(frozen=True, slots=True)
class FollowerSettings:
    """What a follower is told."""

    path: Path
    primary: wire.Address
    name: str | None = None
    follower_id: str | None = None
    archive: str | None = None
    replace: bool = False
    tls: wire.Tls = field(default_factory=wire.Tls)


async def run_follower(settings: FollowerSettings, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Follow until `stop` is set. Settings that cannot work are found out before anything is changed on disk."""
    if not settings.replace:
        check_replica(settings.path)
    settings.tls.channel(settings.primary)
    store = open_store(settings.archive) if settings.archive else None
    new = not state_dir(settings.path).exists()
    client = Client(
        settings.primary,
        settings.tls,
        database=settings.name or settings.path.stem,
        follower_id=settings.follower_id or persistent_id(settings.path),
        guess=settings.name is None,
    )
    following = Following(settings.path, client, store=store)
    following.progress = lambda: Progress("bootstrapping") if sys.stderr.isatty() else None
    running = asyncio.create_task(following.run())
    stopping = asyncio.create_task(stop.wait())
    connected = asyncio.create_task(following.connected.wait())
    connected.add_done_callback(lambda task: None if task.cancelled() else ready())
    try:
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        connected.cancel()
        stopping.cancel()
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            pass
        except ConfigError:
            if new and not settings.path.exists():
                shutil.rmtree(state_dir(settings.path), ignore_errors=True)  # it never was a replica
            raise
        finally:
            await client.close()
            if store is not None:
                store.close()


def persistent_id(database: Path) -> str:
    """The same follower keeps its id: made once, kept beside the replica."""
    path = state_dir(database) / "id"
    if not path.exists() or not path.read_text().strip():
        path.parent.mkdir(exist_ok=True)
        made = path.with_name("id.tmp")
        made.write_text(uuid.uuid4().hex[:12] + "\n")
        made.replace(path)
    return path.read_text().strip()
