"""HTTP/1.1 as uvicorn and h11 speak it, one request on a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from walcast_node.http.app import ALWAYS, MAX_HEADER_BYTES
from walcast_node.http.request import json_answer

Asgi = Callable[[Any, Any, Any], Awaitable[None]]

_log = logging.getLogger("walcast.http.protocol")
_log.setLevel(logging.ERROR)  # uvicorn warns of every malformed request, and strangers send those


def config_for(app: Asgi) -> Config:
    """Nothing but HTTP/1.1: no WebSockets, no logs of its own, no headers that name the server."""
    config = Config(
        app,
        interface="asgi3",
        http=H11Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # whoever asks is who the kernel says it is
        server_header=False,
        date_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    config.load()
    return config


class OneRequest(H11Protocol):
    """`busy` while the application works on the request; `closed` is set when the connection is gone."""

    def __init__(self, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self.logger = _log
        self.access_log = False
        self.busy = False
        self.closed = asyncio.Event()
        self._inner: Asgi = self.app
        self.app = self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.busy = True
        try:
            await self._inner(scope, receive, send)
        finally:
            self.busy = False

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        super().connection_lost(exc)
        self.closed.set()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's own has neither our headers nor JSON. What the application still answers to a request that began
        well is left out: h11 would not have it, and a stranger could fill the log with that."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        answer = json_answer(HTTPStatus.BAD_REQUEST, {"error": "malformed request"})
        headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body))), *ALWAYS]
        try:
            for event in (
                h11.Response(status_code=int(answer.status), headers=headers, reason=b"Bad Request"),
                h11.Data(data=answer.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer has begun already
            pass
        self.transport.close()
