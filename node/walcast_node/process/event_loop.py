"""A role as a process: the event loop, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection

import uvloop

from walcast_node.process.thread_pool import Threads

# Capture, stream and archive share the interpreter: a thread that computes gives way after this long, not after 5 ms.
SWITCH_INTERVAL_S = 0.0005
GC_EVERY = 20_000

BY_SIGNAL = 128  # and the signal's number: the exit code that a shell has for what a signal ended

log = logging.getLogger("walcast.node")


def run_until_signal(
    role: Callable[[asyncio.Event], Awaitable[None]],
    reload: Callable[[], None],
    forward: Callable[[signal.Signals], bool] = lambda number: False,
    forwarded: Collection[signal.Signals] = (),
) -> None:
    """Run `role` with an event that SIGTERM and SIGINT set, which is logged; a second signal ends the process at once.
    SIGHUP calls `reload`, in a thread, once at a time. Each of the signals in `forwarded` is offered to `forward`
    first: where that takes SIGTERM or SIGINT, the first one does not set the event."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()  # what is loaded stays: no collection need look at it again
    gc.set_threshold(GC_EVERY)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        threads = Threads(thread_name_prefix="asyncio")
        threads.start_all()
        loop.set_default_executor(threads)

        asked = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            taken = forward(number)
            if asked.is_set():
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
                os._exit(BY_SIGNAL + number)  # process 1 of a container is not ended by a signal's default
            log.info("stopping", extra={"signal": number.name})
            asked.set()
            if not taken:
                stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        hung_up = asyncio.Event()
        reloading = asyncio.create_task(_reload(reload, hung_up))

        def on_other(number: signal.Signals) -> None:
            forward(number)
            if number is signal.SIGHUP:
                hung_up.set()

        for number in {signal.SIGHUP, *forwarded} - {signal.SIGTERM, signal.SIGINT}:
            loop.add_signal_handler(number, on_other, number)
        try:
            await role(stop)
        finally:
            reloading.cancel()

    uvloop.run(main())


async def _reload(reload: Callable[[], None], asked: asyncio.Event) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await asyncio.to_thread(reload)
        except Exception:
            log.exception("SIGHUP: nothing was read again")
