"""The WSGI middleware (PEP 3333): reads here, writes at the primary, and every visitor sees what he did.

    app = WSGIMiddleware(app, "/srv/app.db", secret=…)

Works under any server, with threads, processes and gevent; a worker's fork needs no care. Place it inside whatever
corrects the client's address (ProxyFix), outside of everything else.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import httpcore

from walcast.errors import StaleReplica
from walcast.locked import explain_locked
from walcast.web import answers
from walcast.web import headers as h
from walcast.web.core import Core, Incoming, InDoubt, Request, Trying, with_token
from walcast.web.deadline import no_longer_than
from walcast.web.forwarding import (
    FAILED,
    REPLAY_BYTES,
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
from walcast.web.sending import Body, Sender

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("walcast.web")

ENVIRON_KEY = "walcast.request"
FEW, MANY = 4, 1000  # that may wait at once: threads, greenlets


class WSGIMiddleware:
    """Around `app`, for the database at `database`; the options are those of `walcast.web.options.Options`."""

    def __init__(self, app: WSGIApplication, database: str | os.PathLike[str], **options: Any) -> None:
        self._app = app
        self._core = Core(database, MANY if _is_green() else FEW, options)
        self._sender = Sender(self._core.options)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        incoming = self._incoming(environ)
        self._restore(environ, incoming)
        found = self._core.route(incoming.asked)
        if isinstance(found, Wait):
            self._wait(found)
            found = self._core.route(incoming.asked, waited=True)
        if isinstance(found, Local):
            try:
                self._take(environ, incoming)
            except BadRequest as error:
                return self._refuse(start_response, incoming, Refuse(error.status, str(error)))
            return self._local(environ, start_response, incoming, found)
        if isinstance(found, Forward):
            return self._forward(environ, start_response, incoming)
        assert isinstance(found, Refuse)
        return self._refuse(start_response, incoming, found)

    def close(self) -> None:
        """Let go of the connections to the primary's app; a later request makes new ones."""
        self._sender.close()

    # What is asked

    def _incoming(self, environ: WSGIEnvironment) -> Incoming:
        path = environ.get("PATH_INFO") or ""
        return self._core.incoming(
            environ["REQUEST_METHOD"],
            path or "/",
            (environ.get("SCRIPT_NAME") or "") + path or "/",
            environ.get("QUERY_STRING") or "",
            forwarded=environ.get("HTTP_WALCAST_FORWARDED"),
            tokens=[environ["HTTP_WALCAST_TOKEN"]] if "HTTP_WALCAST_TOKEN" in environ else [],
            cookie=environ.get("HTTP_COOKIE", ""),
            upgrade="websocket" in environ.get("HTTP_UPGRADE", "").lower(),
        )

    def _restore(self, environ: WSGIEnvironment, incoming: Incoming) -> None:
        """A request that an edge of ours has sent on looks to the app as it did to the edge."""
        environ.pop("HTTP_WALCAST_FORWARDED", None)
        if incoming.proof is None:
            return
        origin = incoming.proof.origin
        if not self._core.options.trust_forwarded:  # else the app at the edge saw them, too
            for key in [key for key in environ if key.startswith("HTTP_X_FORWARDED_")]:
                del environ[key]
        environ["REMOTE_ADDR"] = origin.client
        environ["wsgi.url_scheme"] = origin.proto
        if origin.host:
            environ["HTTP_HOST"] = origin.host

    def _take(self, environ: WSGIEnvironment, incoming: Incoming) -> None:
        """What an edge of ours has sent on: once, and with the body that it had there. BadRequest."""
        proof = incoming.proof
        if proof is None:
            return
        self._core.take(proof)
        body = self._body(environ, time.monotonic() + self._core.options.longest_s)
        try:
            body.fill()
        except ClientGone as error:
            raise BadRequest(400, "the body did not arrive") from error
        self._core.check_body(proof, body.sha256)
        environ["wsgi.input"] = body.for_the_app()
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["CONTENT_LENGTH"] = str(body.size)

    def _body(self, environ: WSGIEnvironment, until: float) -> Body:
        """BadRequest when it is not clear how long it is."""
        options = self._core.options
        length = body_length(
            environ.get("CONTENT_LENGTH") or None,
            environ.get("HTTP_TRANSFER_ENCODING"),
            options.max_body,
            framed=is_framed(environ["REQUEST_METHOD"], environ.get("SERVER_PROTOCOL") or "HTTP/1.1"),
        )
        return Body(environ["wsgi.input"], length, options.max_body, until, self._core.spooled)

    def _wait(self, wait: Wait) -> None:
        with self._core.waiting.enter() as inside:
            if inside:
                try:
                    self._core.replica.wait_for(wait.token, timeout=self._core.options.read_wait_s)
                except StaleReplica:
                    pass  # where it goes then is decided anew

    # The app of this host

    def _local(
        self, environ: WSGIEnvironment, start_response: StartResponse, incoming: Incoming, local: Local
    ) -> Iterable[bytes]:
        if incoming.asked.private:
            return self._app(environ, start_response)
        core = self._core
        request = environ[ENVIRON_KEY] = Request(writes=incoming.asked.writes, primary=local.primary)
        secure = environ.get("wsgi.url_scheme") == "https"
        answer = _Answer(start_response, request, lambda: core.answer_headers(incoming, local, request, secure=secure))
        # At the primary any request may turn out to write, up to its teardown.
        answer.held = local.primary or core.wants_token(incoming, local, request)
        kept = _keep(environ) if local.primary else b""
        try:
            body = self._app(environ, answer.start)
            rest = body if answer.begun or request.forward else answer.begin(body)
        except InDoubt:
            return self._refuse(start_response, incoming, Refuse(502, answers.MAYBE))
        except Exception as error:
            explain_locked(error, core.path)
            raise
        if answer.begun:
            return rest
        if hasattr(body, "close"):
            body.close()
        if not local.primary:
            return self._forward(environ, start_response, incoming.that_writes())
        if kept is None or local.alone or incoming.asked.forwarded or incoming.moved:
            return self._refuse(start_response, incoming, Refuse(NOT_PRIMARY_STATUS, answers.MOVED, 1))
        environ["wsgi.input"] = io.BytesIO(kept)
        return self._forward(environ, start_response, incoming.that_moved())

    # The primary's app

    def _forward(self, environ: WSGIEnvironment, start_response: StartResponse, incoming: Incoming) -> Iterable[bytes]:
        until = time.monotonic() + self._core.options.longest_s
        try:
            check_target(incoming.method, incoming.path)
            body = self._body(environ, until)
            head = Head(
                incoming.method,
                incoming.path,
                incoming.query,
                _headers(environ),
                _origin(environ),
                self._core.name,
            )
            return self._send(environ, start_response, incoming, head, body)
        except BadRequest as error:
            return self._refuse(start_response, incoming, Refuse(error.status, str(error)))
        except ClientGone as error:
            log.info("a client went away", extra={"error": str(error)})
            return self._refuse(start_response, incoming, Refuse(400, "the body did not arrive"))

    def _send(
        self, environ: WSGIEnvironment, start_response: StartResponse, incoming: Incoming, head: Head, body: Body
    ) -> Iterable[bytes]:
        """Until a primary answers, as long as no app has seen the request; while there is none, for a bounded time."""
        core = self._core
        trying = Trying(core.options.primary_wait_s)
        again = not incoming.asked.writes  # once, also when it may have been seen
        while True:
            found = core.route(incoming.asked, waited=True)
            if isinstance(found, Refuse):
                return self._refuse(start_response, incoming, found)
            if isinstance(found, Local):  # promoted meanwhile, or level again
                environ["wsgi.input"] = body.for_the_app()
                return self._local(environ, start_response, incoming, found)
            if isinstance(found, Forward) and found.url and trying.may_ask(found.url):
                try:
                    response = self._sender.send(found.url, head, body)
                    if not says_not_primary(response.headers):
                        return self._pass_on(start_response, response, body)
                    response.close()
                    trying.in_vain(found.url)
                except NotSent as error:
                    log.info("the primary's app cannot be reached", extra={"error": str(error)})
                    trying.in_vain(found.url)
                except MaybeSent as error:
                    log.warning(f"the primary's app failed: {error}", extra={"error": str(error)})
                    if not again:
                        why = answers.MAYBE if incoming.asked.writes else answers.READ_FAILED
                        return self._refuse(start_response, incoming, Refuse(502, why))
                    again = False
            if not self._hold(trying):
                why = core.no_way(found)
                return self._refuse(start_response, incoming, Refuse(503, why, 1))

    def _pass_on(self, start_response: StartResponse, response: httpcore.Response, body: Body) -> Iterable[bytes]:
        """The primary's answer, as it comes."""
        reason = response.extensions.get("reason_phrase", b"").decode("latin-1")
        try:
            start_response(answers.status_line(response.status, reason), answer_headers(response.headers))
        except BaseException:
            response.close()
            raise
        return _Passing(response, body.until)

    def _hold(self, trying: Trying) -> bool:
        """Some time later it may be otherwise; False: there is no more time, or no more room."""
        pause_s = trying.pause_s
        if pause_s <= 0:
            return False
        with self._core.waiting.enter() as inside:
            if inside:
                time.sleep(pause_s)
        return inside

    def _refuse(self, start_response: StartResponse, incoming: Incoming, refuse: Refuse) -> Iterable[bytes]:
        headers, body = answers.answer(refuse.status, refuse.why, self._core.options, refuse.retry_s)
        if incoming.asked.forwarded and refuse.status == NOT_PRIMARY_STATUS:
            headers.append((h.NOT_PRIMARY, "1"))
        start_response(answers.status_line(refuse.status), headers)
        return [] if incoming.method == "HEAD" else [body]


class _Answer:
    """Lets an answer begin, unless the request is to be forwarded after all. One that is `held` begins only when the
    app has done its work, with the headers that are known then."""

    def __init__(self, start_response: StartResponse, request: Request, more: Callable[[], h.Headers]) -> None:
        self.begun = False
        self.held = False
        self._start_response = start_response
        self._request = request
        self._more = more
        self._told: tuple[str, list[tuple[str, str]], Any] | None = None
        self._written: list[bytes] = []

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        """What the app calls."""
        if self._request.forward and not self.begun:
            return lambda data: None
        if self.held and not self.begun:
            self._told = (status, headers, exc_info)
            return self._written.append
        self.begun = True
        return self._start_response(status, with_token(headers, self._more()), exc_info)

    def begin(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """What is held back, or was not begun yet: a generator begins its answer with its first chunk, and may find out
        until then that it is to be forwarded. One that writes may do so until then. InDoubt."""
        if self._told is not None and not self._request.writes and not self._request.forward:
            self.held = False
            write = self.start(*self._told)
            for data in self._written:
                write(data)
            return body
        self.held = True
        chunks = iter(body)
        try:
            first = next((chunk for chunk in chunks if chunk), b"")
            if not self._request.forward:
                if self._told is None:
                    raise AssertionError("the app has not called start_response")
                self.held = False
                write = self.start(*self._told)
                for data in self._written:
                    write(data)
        except BaseException:
            if hasattr(body, "close"):
                body.close()
            raise
        return _Rest(first, chunks, body)


class _Rest:
    """What is left of an app's body once its first chunk was taken."""

    def __init__(self, first: bytes, chunks: Iterator[bytes], body: Iterable[bytes]) -> None:
        self._first: bytes | None = first
        self._chunks = chunks
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return next(self._chunks)

    def close(self) -> None:
        if hasattr(self._body, "close"):
            self._body.close()


class _Passing:
    """The body of a forwarded answer, at most `until`. One that breaks off is an error here, too: the client must not
    take it for whole."""

    def __init__(self, response: httpcore.Response, until: float) -> None:
        self._response = response
        self._until = until
        assert isinstance(response.stream, Iterable)
        self._chunks = iter(response.stream)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            with no_longer_than(self._until):
                return next(self._chunks)
        except FAILED as error:
            raise ConnectionError(f"the primary's answer broke off: {error}") from error

    def close(self) -> None:
        self._response.close()


def _keep(environ: WSGIEnvironment) -> bytes | None:
    """A short body, so that it can be sent on once the app has read it; None: it is too long, or may be."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if environ.get("HTTP_TRANSFER_ENCODING") or not length.isdecimal() or len(length) > 9 or int(length) > REPLAY_BYTES:
        return None
    if int(length) == 0:
        return b""
    data: bytes = environ["wsgi.input"].read(int(length))
    environ["wsgi.input"] = io.BytesIO(data)
    return data if len(data) == int(length) else None


def _is_green() -> bool:
    """Are threads gevent's here?"""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _headers(environ: WSGIEnvironment) -> h.Headers:
    """As the client sent them, as far as CGI keeps that."""
    found = [(key[5:].replace("_", "-").lower(), value) for key, value in environ.items() if key.startswith("HTTP_")]
    if environ.get("CONTENT_TYPE"):
        found.append(("content-type", environ["CONTENT_TYPE"]))
    return found


def _origin(environ: WSGIEnvironment) -> Origin:
    host = environ.get("HTTP_HOST") or ""
    return Origin(environ.get("REMOTE_ADDR") or "", host, environ.get("wsgi.url_scheme") or "http")
