"""The bar, live, as server-sent events.

A stream holds a thread of the server, so there are bounds. It ends after some minutes, and when nobody listens. A
process has only so many: with one more the oldest ends, and browsers that still want it come back by themselves, so
that they take turns. A page in the background has none (`static/live.js`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
SPEAK_S = 1.0  # at least, so that it is noticed when nobody listens
AGAIN_MS = 2000  # after which browsers come back

Parts = dict[str, str]


@dataclass(slots=True, eq=False)
class Stream:
    """Ends soon after it is `over`."""

    over: bool = False


class Streams:
    """Of one process; `most` at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: list[Stream] = []

    def begin(self) -> Stream:
        """One more."""
        stream = Stream()
        with self._lock:
            self._open.append(stream)
            for old in self._open[: -self._most]:
                old.over = True
        return stream

    def end(self, stream: Stream) -> None:
        """One less."""
        with self._lock:
            self._open.remove(stream)


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
    streams: Streams = current_app.extensions["streams"]
    one = streams.begin()
    response = Response(_events(one, parts, pause), mimetype="text/event-stream")
    response.call_on_close(lambda: streams.end(one))
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _events(stream: Stream, parts: Callable[[], Parts], pause: Callable[[], None]) -> Iterator[str]:
    end_s, spoke_s, sent = time.monotonic() + STREAM_S, 0.0, Parts()
    yield f"retry: {AGAIN_MS}\n\n"
    while not stream.over and time.monotonic() < end_s:
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
    app.extensions["streams"] = Streams(app.config["STREAMS"])
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
