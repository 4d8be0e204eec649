"""The table of what can be asked over HTTP. A new path is one more line in `routes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from walcast_node.http.app import Route, Sees
from walcast_node.http.near import is_loopback
from walcast_node.http.request import Answer, Request, json_answer
from walcast_node.process.health import Failure

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def near(request: Request) -> Sees | None:
    """All databases for who asks from this machine, by the address that the kernel tells."""
    return (lambda _: True) if is_loopback(request.peer) else None


def routes(
    failures: Callable[[], Sequence[Failure]],
    status: Callable[[Sees], Awaitable[Mapping[str, Any] | None]],
    metrics: Callable[[], bytes],
) -> dict[str, Route]:
    """`failures` says what is wrong now, `status` what `walcast status` prints to who sees these databases, None for
    nothing, and `metrics` the same for Prometheus; all are called in the HTTP server's event loop and must not block
    it."""

    async def health(_: Request, sees: Sees) -> Answer:
        wrong = failures()
        if not wrong:
            return json_answer(HTTPStatus.OK, {"status": "ok"})
        facts = {"status": "failing", "failure": str(wrong[0].kind)}
        said = next((one for one in wrong if sees(one.database)), None)
        if said is not None:
            facts |= {"failure": str(said.kind), "error": said.text}
        return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, facts)

    async def tell_status(_: Request, sees: Sees) -> Answer:
        facts = await status(sees)
        if facts is None:
            return json_answer(HTTPStatus.FORBIDDEN, {"error": "not allowed"})
        return json_answer(HTTPStatus.OK, facts)

    async def tell_metrics(_: Request, __: Sees) -> Answer:
        return Answer(HTTPStatus.OK, metrics(), content_type=PROMETHEUS)

    return {"/healthz": Route(health, public=True), "/status": Route(tell_status), "/metrics": Route(tell_metrics)}
