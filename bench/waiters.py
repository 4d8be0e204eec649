"""Processes that wait for a replica, as an app's workers do. `python -m bench.waiters KIND WORK DATABASE COUNT`

KIND is threads, asyncio, uvloop or gevent. Each prints "ready", does its work and prints its facts as one line of JSON.
Clocks are CLOCK_MONOTONIC, ns.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import uvloop

import walcast
from walcast.waiting import waiting_for

LONG_S = 120.0
STACK_BYTES = 256 << 10  # of a thread that only waits


def one_after_the_other(replica: walcast.Replica, count: int) -> list[int]:
    """When each of the tokens 1 to `count` was told to a thread, or greenlet, that waited for it."""
    told = []
    print("ready", flush=True)
    for txid in range(1, count + 1):
        replica.wait_for(walcast.Token.of(1, txid), LONG_S)
        told.append(time.monotonic_ns())
    return told


async def one_after_the_other_async(replica: walcast.Replica, count: int) -> list[int]:
    """The same, to a coroutine."""
    told = []
    print("ready", flush=True)
    for txid in range(1, count + 1):
        await replica.wait_for_async(walcast.Token.of(1, txid), LONG_S)
        told.append(time.monotonic_ns())
    return told


def at_once(replica: walcast.Replica, count: int) -> list[int]:
    """When `count` threads, or greenlets, were told, each of a token of its own: 1,000,001 and on."""
    told: list[int] = []

    def wait(token: walcast.Token) -> None:
        replica.wait_for(token, LONG_S)
        told.append(time.monotonic_ns())

    threading.stack_size(STACK_BYTES)
    threads = [threading.Thread(target=wait, args=(token,)) for token in tokens(count)]
    for thread in threads:
        thread.start()
    waiting = waiting_for(replica.path)._threads
    while len(waiting._sleepers) < count - 1:
        time.sleep(0.01)
    print("ready", flush=True)
    for thread in threads:
        thread.join()
    return told


async def at_once_async(replica: walcast.Replica, count: int) -> list[int]:
    """The same, coroutines."""
    told: list[int] = []

    async def wait(token: walcast.Token) -> None:
        await replica.wait_for_async(token, LONG_S)
        told.append(time.monotonic_ns())

    tasks = [asyncio.create_task(wait(token)) for token in tokens(count)]
    await asyncio.sleep(0.1)
    print("ready", flush=True)
    await asyncio.gather(*tasks)
    return told


def tokens(count: int) -> list[walcast.Token]:
    """One for each."""
    return [walcast.Token.of(1, 1_000_000 + number) for number in range(1, count + 1)]


def main(kind: str, work: str, database: str, count: str) -> list[int]:
    """Carry it out."""
    replica = walcast.Replica(database)
    works: dict[str, tuple[Callable[..., list[int]], Callable[..., Any]]] = {
        "one": (one_after_the_other, one_after_the_other_async),
        "all": (at_once, at_once_async),
    }
    blocking, coroutine = works[work]
    if kind in ("threads", "gevent"):
        return blocking(replica, int(count))
    run: Any = {"asyncio": asyncio.run, "uvloop": uvloop.run}[kind]
    told: list[int] = run(coroutine(replica, int(count)))
    return told


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
