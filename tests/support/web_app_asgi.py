"""The same sites as `web_app_wsgi`, as an ASGI app, and a WebSocket that says hello."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from support.web_app_wsgi import SITES, added, notes, zeros

from walcast.replica import Replica
from walcast.web import ASGIMiddleware

LATIN1 = "latin-1"


class App:
    """Of one site."""

    def __init__(self, name: str, database: str) -> None:
        self.name = name
        self.database = database

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": f"hello from {self.name}"})
            await send({"type": "websocket.close"})
            return
        path = scope["path"].removeprefix(scope["root_path"])
        if path.startswith("/bytes/"):
            headers = [(b"content-type", b"application/octet-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for chunk in zeros(int(path.rpartition("/")[2])):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})
        elif path == "/notes" and scope["method"] == "GET":
            found = await asyncio.to_thread(lambda: notes(Replica(self.database).connect()))
            await answer(send, {"notes": found, "region": self.name})
        elif path == "/visit":
            await self.visit(scope, send)
        elif path == "/notes":
            await drained(receive)
            await self.add(scope, send)
        else:
            size, digest = await drained(receive)
            await answer(send, self.seen(scope, path) | {"size": size, "sha256": digest})

    def seen(self, scope: Any, path: str) -> dict[str, Any]:
        """What WSGI would call it."""
        headers: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = raw.decode(LATIN1).upper().replace("-", "_")
            headers[name] = f"{headers[name]},{value.decode(LATIN1)}" if name in headers else value.decode(LATIN1)
        return {
            "region": self.name,
            "REQUEST_METHOD": scope["method"],
            "SCRIPT_NAME": scope["root_path"],
            "PATH_INFO": path.encode("utf-8", "surrogateescape").decode(LATIN1),
            "QUERY_STRING": scope["query_string"].decode(LATIN1),
            "REMOTE_ADDR": scope["client"][0],
            "CONTENT_TYPE": headers.pop("CONTENT_TYPE", ""),
            "scheme": scope["scheme"],
            "headers": headers,
        }

    async def add(self, scope: Any, send: Any) -> None:
        row = await asyncio.to_thread(added, self.database, scope["query_string"].decode())
        if row is None:
            scope["walcast.request"].forward = True
        await answer(send, {"id": row, "region": self.name}, 201)

    async def visit(self, scope: Any, send: Any) -> None:
        request = scope["walcast.request"]
        if not request.primary:
            request.forward = True
            await send({"type": "http.response.start", "status": 500, "headers": [(b"set-cookie", b"never=seen")]})
            await send({"type": "http.response.body", "body": b"never seen"})
            return
        request.writes = True
        await self.add(scope, send)


async def answer(send: Any, facts: object, status: int = 200) -> None:
    body = json.dumps(facts).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def drained(receive: Any) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while True:
        message = await receive()
        assert message["type"] == "http.request", "the client went away"
        size += len(message.get("body", b""))
        digest.update(message.get("body", b""))
        if not message.get("more_body", False):
            return size, digest.hexdigest()


MIDDLEWARES = {
    name: ASGIMiddleware(App(name, site["database"]), site["database"], **site["options"])
    for name, site in SITES.items()
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The site that is asked for; below /mounted the same one is mounted."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode(LATIN1)
    if scope["path"].startswith("/mounted"):
        scope = {**scope, "root_path": scope["root_path"] + "/mounted"}
    await MIDDLEWARES[host.partition(":")[0]](scope, receive, send)


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
