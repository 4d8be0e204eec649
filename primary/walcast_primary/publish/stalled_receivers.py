"""Receivers that stand still: gRPC stops the sending for as long as they do, whatever is held for them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

T = TypeVar("T")


async def unless_stalled(messages: AsyncGenerator[T], stall_s: float) -> AsyncGenerator[T]:
    """What `messages` gives, until one is not taken for `stall_s`: then `messages` is closed, at that moment and not
    when the receiver comes back, and nothing more comes."""
    loop = asyncio.get_running_loop()
    closing: asyncio.Task[None] | None = None

    def close() -> None:
        nonlocal closing
        closing = loop.create_task(messages.aclose())

    try:
        async for message in messages:
            timer = loop.call_later(stall_s, close)
            try:
                yield message
            finally:
                timer.cancel()
            if closing is not None:
                return
    finally:
        await (closing or messages.aclose())
