"""One request and its answer, independent of the server that carries them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for, and both ends of its connection as the kernel tells them.

    `host` is the Host header; only an HTTP/1.0 client may leave it out, as the health checks of some load balancers do
    and no browser does. `header_bytes` counts path and query, too. `body_announced` says that a body follows; it is
    never read.
    """

    method: str
    path: str
    query: str
    host: str | None
    peer: str
    peer_port: int
    local: str
    local_port: int
    tls: bool = False
    authorization: str | None = field(default=None, repr=False)
    header_bytes: int = 0
    header_count: int = 0
    body_announced: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send back."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def json_answer(status: HTTPStatus, facts: Facts, *headers: tuple[str, str]) -> Answer:
    """Facts as one line of JSON."""
    return Answer(status, json.dumps(facts).encode() + b"\n", headers=headers)
