"""Work in a thread that the end of the process does not wait for, as that of a pool would be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_detached(work: Callable[..., T], *arguments: object, name: str) -> T:
    """What `work` returns or raises. Who gives up waiting leaves it running, and nothing depends on its end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(set_it: Callable[..., None], what: object) -> None:
        if not answer.done():
            set_it(what)

    def run() -> None:
        try:
            done = work(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            _call(loop, tell, answer.set_exception, error)
        else:
            _call(loop, tell, answer.set_result, done)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer


def _call(loop: asyncio.AbstractEventLoop, *what: object) -> None:
    try:
        loop.call_soon_threadsafe(*what)  # type: ignore[arg-type]
    except RuntimeError:  # the loop is closed: nobody waits any more
        pass
