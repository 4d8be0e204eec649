"""No request is executed twice."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from examples.consistency.guestbook import Visitor
from examples.consistency.host import Host
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def losing_answers(app: WSGIApplication) -> WSGIApplication:
    """The app, behind a network that breaks when all was done and before anybody is told."""

    def lost(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        list(app(environ, start_response))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    return lost


def naive_proxy(primary: Host, text: str) -> None:
    """What many load balancers do: an error is a reason to try once more."""
    form = urlencode({"text": text})
    for _ in range(2):
        with closing(HTTPConnection("127.0.0.1", primary.app_port, timeout=5.0)) as connection:
            try:
                connection.request("POST", "/", form, {"Content-Type": "application/x-www-form-urlencoded"})
                connection.getresponse()
                return
            except (HTTPException, OSError):
                pass


def show(stage: Stage, tell: Tell) -> None:
    """An order is executed, and the answer is lost."""
    primary, edge, visitor = stage.primary, stage.edges[0], Visitor()

    def count(text: str) -> int:
        return visitor.read(primary).posts.count(text)

    stage.serve()
    whole, primary.app = primary.app, losing_answers(primary.app)
    naive_proxy(primary, "A lamp")
    page = visitor.post(edge, "A chair")
    visitor.post(edge, "A table", key="9f1c")
    primary.app = whole
    tell.without(count("A lamp") == 2, f"a proxy that tries again: {count('A lamp')} lamps are ordered")
    told = page.status == 502 and count("A chair") == 1
    tell.given(told, f"{edge} answers {page.status}, perhaps done: {count('A chair')} chair")

    visitor.post(edge, "A chair")
    tell.without(count("A chair") == 2, f"the visitor sends the form again: {count('A chair')} chairs")
    page = visitor.post(edge, "A table", key="9f1c")
    told = page.status == 303 and count("A table") == 1
    tell.given(told, f"the form has a hidden key, UNIQUE in its table: {count('A table')} table")
