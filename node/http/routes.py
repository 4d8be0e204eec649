"""The table of what can be asked over HTTP. A new path is one more line in `routes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from node.health import Failure
from node.http.app import Allows, Route
from node.http.near import is_loopback
from node.http.request import Answer, Request, json_answer


def near(request: Request) -> bool:
    """Does the request come from this machine, by the address that the kernel tells?"""
    return is_loopback(request.peer)


def routes(
    failure: Callable[[], Failure | None], status: Callable[[], Awaitable[Mapping[str, Any]]], allows: Allows
) -> dict[str, Route]:
    """`failure` says what is wrong now, `status` what `walcast status` prints; both are called in the HTTP server's
    event loop and must not block it."""

    async def health(request: Request) -> Answer:
        wrong = failure()
        if wrong is None:
            return json_answer(HTTPStatus.OK, {"status": "ok"})
        facts = {"status": "failing", "failure": str(wrong.kind)}
        if allows(request):
            facts["error"] = wrong.text
        return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, facts)

    async def tell_status(_: Request) -> Answer:
        return json_answer(HTTPStatus.OK, await status())

    return {"/healthz": Route(health, public=True), "/status": Route(tell_status)}
