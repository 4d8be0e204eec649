"""The ASGI middleware (ASGI 3): as `walcast.web.wsgi`, without a thread for whoever waits.

    app = ASGIMiddleware(app, "/srv/app.db", secret=…)

WebSockets are for the primary's app: elsewhere they are refused, with a word, since nobody can tell what they will do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import httpcore

from walcast.errors import StaleReplica
from walcast.locked import explain_locked
from walcast.web import answers
from walcast.web import headers as h
from walcast.web.core import Core, Incoming, InDoubt, Request, Trying, with_token
from walcast.web.forwarding import (
    FAILED,
    BadRequest,
    ClientGone,
    Head,
    MaybeSent,
    NotSent,
    answer_headers,
    body_length,
    check_target,
    is_framed,
    says_not_primary,
)
from walcast.web.proof import Origin
from walcast.web.routing import NOT_PRIMARY_STATUS, Forward, Local, Refuse, Wait
from walcast.web.sending_async import AsyncBody, AsyncSender, Kept, Message, Receive

log = logging.getLogger("walcast.web")

Scope: TypeAlias = dict[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

SCOPE_KEY = "walcast.request"
MANY = 1000  # that may wait at once
HELD_S = 0.1  # of an answer, for its app to return
TRY_AGAIN_LATER = 1013  # a WebSocket close code


class ASGIMiddleware:
    """Around `app`, for the database at `database`; the options are those of `walcast.web.options.Options`."""

    def __init__(self, app: App, database: str | os.PathLike[str], **options: Any) -> None:
        self._app = app
        self._core = Core(database, MANY, options)
        self._sender = AsyncSender(self._core.options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            try:
                await self._app(scope, receive, send)
            finally:
                await self._sender.close()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming = self._incoming(scope)
        scope = self._restored(scope, incoming)
        found = self._core.route(incoming.asked)
        if isinstance(found, Wait):
            await self._wait(found)
            found = self._core.route(incoming.asked, waited=True)
        if isinstance(found, Local):
            try:
                scope, receive = await self._taken(scope, receive, incoming)
            except BadRequest as error:
                await self._refuse(send, incoming, Refuse(error.status, str(error)))
            except ClientGone as error:
                log.info("an edge went away", extra={"error": str(error)})
            else:
                await self._local(scope, receive, send, incoming, found)
        elif isinstance(found, Forward):
            await self._forward(scope, receive, send, incoming)
        elif isinstance(found, Refuse):
            await self._refuse(send, incoming, found)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._core.route(self._incoming(scope).asked)
        if isinstance(found, Local):
            await self._app(scope, receive, send)
            return
        await receive()  # websocket.connect
        why = found.why if isinstance(found, Refuse) else self._core.no_way(found)
        if "websocket.http.response" in scope.get("extensions", {}):
            status = found.status if isinstance(found, Refuse) else 503
            headers, body = answers.answer(status, why, self._core.options)
            await send({"type": "websocket.http.response.start", "status": status, "headers": _raw(headers)})
            await send({"type": "websocket.http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": why})

    # What is asked

    def _incoming(self, scope: Scope) -> Incoming:
        path = _as_wsgi(scope["path"])
        root = _as_wsgi(scope.get("root_path", "")).rstrip("/")
        below = path[len(root) :] if (path + "/").startswith(root + "/") else path
        headers = _headers(scope)
        forwarded = [value for name, value in headers if name == h.FORWARDED]
        return self._core.incoming(
            scope.get("method", "GET"),
            below or "/",
            path or "/",
            scope.get("query_string", b"").decode("latin-1"),
            forwarded=forwarded[0] if forwarded else None,
            tokens=[value for name, value in headers if name == h.TOKEN],
            cookie=";".join(value for name, value in headers if name == "cookie"),
            upgrade=scope["type"] == "websocket",
        )

    def _restored(self, scope: Scope, incoming: Incoming) -> Scope:
        """A request that an edge of ours has sent on looks to the app as it did to the edge."""
        if not incoming.asked.forwarded:
            return scope
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != h.FORWARDED.encode()]
        if incoming.proof is None:
            return {**scope, "headers": headers}
        origin = incoming.proof.origin
        if not self._core.options.trust_forwarded:  # else the app at the edge saw them, too
            headers = [pair for pair in headers if not pair[0].lower().startswith(b"x-forwarded-")]
        if origin.host:
            headers = [pair for pair in headers if pair[0].lower() != b"host"]
            headers.insert(0, (b"host", origin.host.encode("latin-1")))
        return {**scope, "headers": headers, "scheme": origin.proto, "client": (origin.client, 0)}

    async def _taken(self, scope: Scope, receive: Receive, incoming: Incoming) -> tuple[Scope, Receive]:
        """What an edge of ours has sent on: once, and with the body that it had there. BadRequest, ClientGone."""
        proof = incoming.proof
        if proof is None:
            return scope, receive
        self._core.take(proof)
        until = time.monotonic() + self._core.options.longest_s
        body = self._body(scope, _once(_headers(scope)), receive, incoming, until)
        await body.fill()
        self._core.check_body(proof, body.sha256)
        framing = (b"content-length", b"transfer-encoding")
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in framing]
        headers.append((b"content-length", b"%d" % body.size))
        return {**scope, "headers": headers}, body.for_the_app()

    def _body(
        self, scope: Scope, headers: dict[str, str], receive: Receive, incoming: Incoming, until: float
    ) -> AsyncBody:
        """BadRequest when it is not clear how long it is."""
        options = self._core.options
        length = body_length(
            headers.get("content-length"),
            headers.get("transfer-encoding"),
            options.max_body,
            framed=is_framed(incoming.method, scope.get("http_version", "1.1")),
        )
        return AsyncBody(receive, length, options.max_body, options.answer_s, until, self._core.spooled)

    async def _wait(self, wait: Wait) -> None:
        with self._core.waiting.enter() as inside:
            if inside:
                with suppress(StaleReplica):  # where it goes then is decided anew
                    await self._core.replica.wait_for_async(wait.token, timeout=self._core.options.read_wait_s)

    # The app of this host

    async def _local(self, scope: Scope, receive: Receive, send: Send, incoming: Incoming, local: Local) -> None:
        if incoming.asked.private:
            await self._app(scope, receive, send)
            return
        request = Request(writes=incoming.asked.writes, primary=local.primary)
        scope = {**scope, SCOPE_KEY: request}
        secure = scope.get("scheme") == "https"
        kept = Kept(receive)
        answer = _Answer(self._core, send, incoming, local, request, secure=secure)
        try:
            await answer.of(self._app(scope, kept.receive if local.primary else receive, answer.sending))
        except InDoubt:
            await self._refuse(send, incoming, Refuse(502, answers.MAYBE))
            return
        except Exception as error:
            explain_locked(error, self._core.path)
            raise
        if answer.begun or not request.forward:
            return
        if not local.primary:
            await self._forward(scope, receive, send, incoming.that_writes())
            return
        again = kept.again()
        if again is None or local.alone or incoming.asked.forwarded or incoming.moved:
            await self._refuse(send, incoming, Refuse(NOT_PRIMARY_STATUS, answers.MOVED, 1))
        else:
            await self._forward(scope, again, send, incoming.that_moved())

    # The primary's app

    async def _forward(self, scope: Scope, receive: Receive, send: Send, incoming: Incoming) -> None:
        until = time.monotonic() + self._core.options.longest_s
        headers = _headers(scope)
        sent = _once(headers)
        try:
            if sum(name == "host" for name, _ in headers) > 1:
                raise BadRequest(400, "there are two hosts")
            check_target(incoming.method, incoming.path)
            body = self._body(scope, sent, receive, incoming, until)
            origin = _origin(scope, sent)
            head = Head(incoming.method, incoming.path, incoming.query, headers, origin, self._core.name)
            await self._send(scope, send, incoming, head, body)
        except BadRequest as error:
            await self._refuse(send, incoming, Refuse(error.status, str(error)))
        except ClientGone as error:
            log.info("a client went away", extra={"error": str(error)})

    async def _send(self, scope: Scope, send: Send, incoming: Incoming, head: Head, body: AsyncBody) -> None:
        """Until a primary answers, as long as no app has seen the request; while there is none, for a bounded time."""
        core = self._core
        trying = Trying(core.options.primary_wait_s)
        again = not incoming.asked.writes  # once, also when it may have been seen
        while True:
            found = core.route(incoming.asked, waited=True)
            if isinstance(found, Refuse):
                return await self._refuse(send, incoming, found)
            if isinstance(found, Local):  # promoted meanwhile, or level again
                return await self._local(scope, body.for_the_app(), send, incoming, found)
            if isinstance(found, Forward) and found.url and trying.may_ask(found.url):
                try:
                    response = await self._sender.send(found.url, head, body)
                    if not says_not_primary(response.headers):
                        return await self._pass_on(send, response, body)
                    await response.aclose()
                    trying.in_vain(found.url)
                except NotSent as error:
                    log.info("the primary's app cannot be reached", extra={"error": str(error)})
                    trying.in_vain(found.url)
                except MaybeSent as error:
                    log.warning(f"the primary's app failed: {error}", extra={"error": str(error)})
                    if not again:
                        why = answers.MAYBE if incoming.asked.writes else answers.READ_FAILED
                        return await self._refuse(send, incoming, Refuse(502, why))
                    again = False
            if not await self._hold(trying):
                why = core.no_way(found)
                return await self._refuse(send, incoming, Refuse(503, why, 1))

    async def _hold(self, trying: Trying) -> bool:
        """Some time later it may be otherwise; False: there is no more time, or no more room."""
        pause_s = trying.pause_s
        if pause_s <= 0:
            return False
        with self._core.waiting.enter() as inside:
            if inside:
                await asyncio.sleep(pause_s)
        return inside

    async def _pass_on(self, send: Send, response: httpcore.Response, body: AsyncBody) -> None:
        """The primary's answer, as it comes. One that breaks off is an error here, too: the client must not take it for
        whole."""
        gone = asyncio.ensure_future(body.wait_until_gone())
        try:
            headers = _raw(answer_headers(response.headers))
            async with asyncio.timeout(body.until - time.monotonic()):  # also of a client that does not read
                await send({"type": "http.response.start", "status": response.status, "headers": headers})
                assert isinstance(response.stream, AsyncIterable)
                async for chunk in response.stream:
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            raise ConnectionError("the answer takes too long") from None
        except FAILED as error:
            raise ConnectionError(f"the primary's answer broke off: {error}") from error
        finally:
            gone.cancel()
            await response.aclose()

    async def _refuse(self, send: Send, incoming: Incoming, refuse: Refuse) -> None:
        headers, body = answers.answer(refuse.status, refuse.why, self._core.options, refuse.retry_s)
        if incoming.asked.forwarded and refuse.status == NOT_PRIMARY_STATUS:
            headers.append((h.NOT_PRIMARY, "1"))
        await send({"type": "http.response.start", "status": refuse.status, "headers": _raw(headers)})
        await send({"type": "http.response.body", "body": b"" if incoming.method == "HEAD" else body})


class _Answer:
    """Lets an app's answer begin when the app has done its work, unless the request is to be forwarded after all.

    One that came in one piece, of a request that writes, is held back until the app returns, for a moment at most: apps
    may commit after they have said all, and what they do in the background takes its time.
    """

    def __init__(
        self, core: Core, send: Send, incoming: Incoming, local: Local, request: Request, *, secure: bool
    ) -> None:
        self.begun = False
        self._core = core
        self._send = send
        self._incoming = incoming
        self._local = local
        self._request = request
        self._secure = secure
        self._holds = local.primary and request.writes
        self._start: Message | None = None
        self._whole: Message | None = None
        self._said_all = asyncio.Event()

    async def of(self, app: Awaitable[None]) -> None:
        """Until the app has returned. InDoubt."""
        if not self._holds:
            await app
            return
        working = asyncio.ensure_future(app)
        saying = asyncio.ensure_future(self._said_all.wait())
        try:
            await asyncio.wait([working, saying], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([working], timeout=HELD_S)
            if not working.done() or working.exception() is None:
                await self._finish()
            await working
        except InDoubt:
            raise  # what the app still does in the background it may end
        except BaseException:
            working.cancel()
            await asyncio.wait([working])
            raise
        finally:
            saying.cancel()

    async def sending(self, message: Message) -> None:
        """What the app calls."""
        if self._request.forward and not self.begun:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        whole = not self.begun and message["type"] == "http.response.body" and not message.get("more_body", False)
        if whole and self._holds:
            self._whole = message
            self._said_all.set()
            return
        await self._begin()
        await self._send(message)
        if not message.get("more_body", False):
            self._said_all.set()

    async def _finish(self) -> None:
        whole, self._whole = self._whole, None
        if whole is not None and not self._request.forward:
            await self._begin()
            await self._send(whole)

    async def _begin(self) -> None:
        if self._start is None:
            return
        start, self._start = self._start, None
        core, incoming, local, request = self._core, self._incoming, self._local, self._request
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in start.get("headers", [])]
        if core.wants_token(incoming, local, request):
            more = await asyncio.to_thread(core.answer_headers, incoming, local, request, secure=self._secure)
        else:
            more = core.answer_headers(incoming, local, request, secure=self._secure)
        self.begun = True
        await self._send({**start, "headers": _raw(with_token(headers, more))})


def _headers(scope: Scope) -> h.Headers:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]


def _once(headers: h.Headers) -> dict[str, str]:
    """Servers let some come twice: then they are not what they must be."""
    found: dict[str, str] = {}
    for name, value in headers:
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _origin(scope: Scope, headers: dict[str, str]) -> Origin:
    client = scope.get("client")
    return Origin(client[0] if client else "", headers.get("host", ""), scope.get("scheme", "http"))


def _as_wsgi(path: str) -> str:
    """Bytes as latin-1, as in WSGI."""
    return path.encode("utf-8", "surrogateescape").decode("latin-1")


def _raw(headers: h.Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
