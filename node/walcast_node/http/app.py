"""What every request passes before its route answers it: Host, method, size, permission."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from walcast.rarely import Rarely
from walcast.shortage import reason
from walcast_node.http.hosts import is_known
from walcast_node.http.request import Answer, Request, json_answer

MAX_HEADER_BYTES = 16 << 10
MAX_HEADERS = 100
METHODS = ("GET", "HEAD")
ALWAYS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("Connection", "close"))

Sees = Callable[[str], bool]  # a database's name, or "" for what concerns all
Admits = Callable[[Request], Sees | None]
Scope = Mapping[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]

log = logging.getLogger("walcast.http")


@dataclass(frozen=True, slots=True)
class Route:
    """One path. `answer` is told which databases whoever asks may see. What is not `public` is answered only to those
    who may see something."""

    answer: Callable[[Request, Sees], Awaitable[Answer]]
    public: bool = False


@dataclass(frozen=True, slots=True)
class Hosts:
    """Whose requests are meant for this server: `listening` as it was configured, `names` besides."""

    listening: str
    names: Collection[str] = ()


def refusal(request: Request, hosts: Hosts) -> Answer | None:
    """Why a request is not answered whatever its path; None when nothing speaks against it."""
    if request.host is not None and not is_known(request.host, request.local, hosts.listening, hosts.names):
        wrong = "this server is not known by that name; --http-host adds one"
        return json_answer(HTTPStatus.MISDIRECTED_REQUEST, {"error": wrong})
    if request.header_bytes > MAX_HEADER_BYTES or request.header_count > MAX_HEADERS:
        return json_answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, {"error": "too many or too long headers"})
    if request.method not in METHODS:
        allow = ("Allow", ", ".join(METHODS))
        return json_answer(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET and HEAD are answered"}, allow)
    if request.body_announced:
        return json_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "no request takes a body"})
    return None


class App:
    """An ASGI application over a table of routes. `admits` says which databases whoever asks may see, None for none of
    them. Used in the server's event loop only."""

    def __init__(self, routes: Mapping[str, Route], admits: Admits, hosts: Hosts) -> None:
        self._routes = routes
        self._admits = admits
        self._hosts = hosts
        self._rarely = Rarely(log)

    async def answer(self, request: Request) -> Answer:
        """Never raises but when it is cancelled; what went wrong is in the log, not in the answer."""
        refused = refusal(request, self._hosts)
        if refused is not None:
            return refused
        route = self._routes.get(request.path)
        if route is None:
            return json_answer(HTTPStatus.NOT_FOUND, {"error": "not found"})
        try:
            sees = self._seen_by(request, route)
            if sees is None and not route.public:
                return json_answer(HTTPStatus.FORBIDDEN, {"error": "not allowed"})
            return await route.answer(request, sees or _nothing)
        except TimeoutError:
            return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "no answer in time"})
        except Exception as error:  # noqa: BLE001 - a request must not end the server
            facts = {"path": request.path, "error": reason(error)}
            self._rarely.log(logging.WARNING, "cannot answer over HTTP", type(error).__name__, facts)
            return json_answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error"})

    def _seen_by(self, request: Request, route: Route) -> Sees | None:
        """What who asks may see. The health does not depend on whether that can be found out."""
        try:
            return self._admits(request)
        except Exception:
            if not route.public:
                raise
            return None

    async def __call__(self, scope: Scope, receive: object, send: Send) -> None:
        """As ASGI says. The request's body is never asked for."""
        await reply(await self.answer(request_of(scope)), send)


def _nothing(_: str) -> bool:
    return False


async def reply(answer: Answer, send: Send) -> None:
    """Send it, with the headers that every answer has. The connection ends with it."""
    headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
    headers += [*answer.headers, *ALWAYS]
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": int(answer.status), "headers": raw})
    await send({"type": "http.response.body", "body": answer.body})


def request_of(scope: Scope) -> Request:
    """From ASGI's scope. The path is compared as it was sent: no route needs an escape."""
    headers: dict[str, str] = {}
    pairs: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in pairs:
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    peer, peer_port = scope["client"] or ("", 0)
    local, local_port = scope["server"] or ("", 0)
    path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return Request(
        method=scope["method"],
        path=path,
        query=query,
        host=headers.get("host", None if scope["http_version"] == "1.0" else ""),
        peer=peer,
        peer_port=peer_port,
        local=local,
        local_port=local_port or 0,
        tls=scope["scheme"] == "https",
        authorization=headers.get("authorization"),
        header_bytes=len(path) + len(query) + sum(len(name) + len(value) for name, value in pairs),
        header_count=len(pairs),
        body_announced=headers.get("content-length", "0").strip() != "0" or "transfer-encoding" in headers,
    )
