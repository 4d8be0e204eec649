"""The bar, live, as server-sent events.

A stream holds a thread of the server, so there are bounds: it ends after some minutes (browsers connect again by
themselves), a process has only so many, and a page in the background has none (`static/live.js`). Whoever gets none has
the bar as it was when the page was made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from flask import Flask, Response, current_app

from examples.flask_app.bar import Bar, lag_words, look, ms_words, role_words
from walcast.errors import StaleReplica, Unavailable
from walcast.replica import Replica
from walcast.statusfile import State, read_status
from walcast.token import Token

if TYPE_CHECKING:
    from walcast.adapters.flask import Walcast

STREAM_S = 240.0
LOOK_S = 1.0
LEAST_S = 0.1  # between two events, however fast commits come
SPEAK_S = 10.0  # at least, so that it is noticed when nobody listens

Parts = dict[str, str]


def wait(replica: Replica) -> None:
    """Until this region has another transaction, or for `LOOK_S`."""
    time.sleep(LEAST_S)
    try:
        status = read_status(replica.path)
        if status.state is not State.PRIMARY:
            replica.wait_for(Token.of(status.term, status.position.txid + 1), LOOK_S)
            return
    except StaleReplica:
        return
    except Unavailable:
        pass  # nothing to wait for: no walcast ever ran here
    time.sleep(LOOK_S / 2)  # a primary has whatever there is


def stream(parts: Callable[[], Parts], pause: Callable[[], None]) -> Response:
    """Events named like the parts of the page, each with its HTML, whenever that changes. `pause` returns when there
    may be news; neither may need the request, which is over by then."""
    streams: threading.Semaphore = current_app.extensions["streams"]
    if not streams.acquire(blocking=False):
        return Response("all streams of this process are taken\n", 503, {"Retry-After": "15"}, mimetype="text/plain")
    response = Response(_events(parts, pause), mimetype="text/event-stream")
    response.call_on_close(streams.release)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _events(parts: Callable[[], Parts], pause: Callable[[], None]) -> Iterator[str]:
    end_s, spoke_s, sent = time.monotonic() + STREAM_S, 0.0, Parts()
    yield "retry: 2000\n\n"
    while time.monotonic() < end_s:
        for name, html in parts().items():
            if sent.get(name) != html:
                sent[name], spoke_s = html, time.monotonic()
                yield f"event: {name}\ndata: {' '.join(html.split())}\n\n"
        if time.monotonic() - spoke_s > SPEAK_S:
            spoke_s = time.monotonic()
            yield ": nothing new\n\n"
        pause()


def init_app(app: Flask, walcast: Walcast) -> None:
    """The bar in every page, and `/live`."""
    region: str = app.config["REGION"]
    app.extensions["streams"] = threading.BoundedSemaphore(app.config["STREAMS"])
    app.jinja_env.filters |= {"role": role_words, "lag": lag_words, "ms": ms_words}

    @app.context_processor
    def bar() -> dict[str, Bar]:
        return {"bar": look(walcast.replica, region)}

    @app.get("/live")
    def live() -> Response:
        replica = walcast.replica
        return stream(lambda: bar_part(app, replica, region), lambda: wait(replica))


def bar_part(app: Flask, replica: Replica, region: str) -> Parts:
    """The bar's inside."""
    return {"bar": app.jinja_env.get_template("_bar.html").render(bar=look(replica, region))}
