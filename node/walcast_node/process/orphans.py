"""Orphans of the first process of a container: whoever loses its parent becomes a child of process 1, which has to take
notice of its end. Without that each one stays as a zombie, until no process can be made any more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

LOOK_S = 5.0


async def reap_for_ever(mine: Callable[[], Collection[int]]) -> None:
    """Where this is process 1; `mine` are children that somebody here waits for. A child that is a zombie at two looks
    in a row is nobody's: whoever starts one waits for its end at once."""
    if os.getpid() != 1:
        return
    seen: frozenset[int] = frozenset()
    while True:
        await asyncio.sleep(LOOK_S)
        seen = await asyncio.to_thread(reap, seen, mine())


def reap(seen: Collection[int], mine: Collection[int]) -> frozenset[int]:
    """Take notice of the zombies that were `seen` at the look before; the others that there are now."""
    now = frozenset(_zombies()) - set(mine)
    for pid in now & set(seen):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return now - set(seen)


def _zombies() -> list[int]:
    """Children of this process that have ended (proc(5): the fields behind the name, which may hold anything)."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            state, parent = (folder / "stat").read_bytes().rpartition(b") ")[2].split(b" ")[:2]
            if state == b"Z" and int(parent) == os.getpid():
                found.append(int(folder.name))
    return found
