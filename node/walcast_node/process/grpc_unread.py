"""Calls whose request has not come: gRPC waits for it without end, and asks nobody who makes the call until it has.

So a call of one request is read here, within a deadline, and of many that are silent the oldest goes. Whoever asks
sends his request with the call, and is not among them for longer than a turn of the event loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

READ_S = 10.0
UNREAD_MOST = 500

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Unread(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Those of one server."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Timeout, None] = {}  # in the order of their age

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """As gRPC's: the method's handler, which is given its request as soon as it has come."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        given = handler.request_deserializer, handler.response_serializer
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(self._read_first(handler.unary_unary), *given)
        assert not inspect.isasyncgenfunction(handler.unary_stream)  # whoever adds one sees to it here
        return grpc.stream_stream_rpc_method_handler(self._read_first(handler.unary_stream), *given)

    def _read_first(self, answer: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def read_first(requests: AsyncIterator[Any], context: Context) -> Any:
            request = await self._request(requests)
            if request is None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no request came")
            return await answer(request, context)

        return read_first

    async def _request(self, requests: AsyncIterator[Any]) -> Any:
        """None for a call that has none, in time, that can be decoded."""
        if len(self._waiting) >= UNREAD_MOST:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.reschedule(0.0)
        deadline = asyncio.timeout(READ_S)
        try:
            async with deadline:
                self._waiting[deadline] = None
                return await anext(aiter(requests), None)
        except (DecodeError, TimeoutError):
            return None
        finally:
            self._waiting.pop(deadline, None)
