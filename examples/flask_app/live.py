"""The bar, live: where this region is, as server-sent events.

A stream holds a thread of the server, so there are bounds: it ends after some minutes (browsers connect again by
themselves), a process has only so many, and a page in the background has none (`static/live.js`). Whoever gets none has
the bar as it was when the page was made.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Flask, Response, render_template, stream_with_context

from walcast.errors import StaleReplica, Unavailable
from walcast.replica import Replica
from walcast.statusfile import State, read_status
from walcast.token import Token

if TYPE_CHECKING:
    from walcast.adapters.flask import Walcast

STREAM_S = 240.0
STREAMS = 5  # in one process, so that threads are left for pages
LOOK_S = 1.0
LEAST_S = 0.1  # between two events, however fast commits come
SPEAK_S = 10.0  # at least, so that it is noticed when nobody listens

Parts = dict[str, str]

_streams = threading.BoundedSemaphore(STREAMS)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a region says of itself. `state` as in `walcast.statusfile`, "absent" where no walcast ever ran; `token` is
    its position; `lag_ms` is infinite when it was never level."""

    region: str
    state: str = "absent"
    token: str = "none"
    lag_ms: float = math.inf

    @property
    def role(self) -> str:
        """In words."""
        return role_words(self.state)

    @property
    def lag(self) -> str:
        """In words."""
        return lag_words(self.lag_ms, self.state)


ROLES = {"primary": "primary", "fenced": "primary, fenced"} | {
    state: state for state in ("absent", "stopped", "killed")
}


def role_words(state: str) -> str:
    """What a region is, and how it is."""
    return ROLES.get(state, f"replica, {state}")


def lag_words(lag_ms: float | None, state: str) -> str:
    """What a primary has is the newest there is."""
    if state in ROLES:
        return "none"
    return ms_words(lag_ms) if lag_ms is not None and math.isfinite(lag_ms) else "unknown"


def ms_words(ms: float) -> str:
    """Milliseconds, for people."""
    if ms < 10:
        return f"{ms:.1f} ms"
    return f"{ms:,.0f} ms" if ms < 10_000 else f"{ms / 1000:,.0f} s"


def look(replica: Replica, region: str) -> Bar:
    """As it is now."""
    try:
        status = read_status(replica.path)
    except Unavailable:
        return Bar(region)
    now_ns = time.time_ns()
    state = status.state if status.is_live(now_ns) else State.STOPPED
    lag_ms = status.lag_ms(now_ns) if status.level_ns else math.inf
    return Bar(region, str(state), str(Token.of(status.term, status.position.txid)), lag_ms)


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
    may be news."""
    if not _streams.acquire(blocking=False):
        return Response("all streams of this process are taken\n", 503, {"Retry-After": "15"}, mimetype="text/plain")
    response = Response(stream_with_context(_events(parts, pause)), mimetype="text/event-stream")
    response.call_on_close(_streams.release)
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
    app.jinja_env.filters |= {"role": role_words, "lag": lag_words, "ms": ms_words}

    @app.context_processor
    def bar() -> dict[str, Bar]:
        return {"bar": look(walcast.replica, region)}

    @app.get("/live")
    def live() -> Response:
        replica = walcast.replica
        return stream(lambda: bar_part(replica, region), lambda: wait(replica))


def bar_part(replica: Replica, region: str) -> Parts:
    """The bar's inside."""
    return {"bar": render_template("_bar.html", bar=look(replica, region))}
