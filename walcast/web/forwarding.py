"""A request as it goes to the primary's app, and what can become of it. No I/O.

What went wrong is told apart by one question: may the primary's app have seen the request? If not, it may be sent
again, there or elsewhere. If so, it is sent again only when it does not write.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore

from walcast.appurl import is_never_used
from walcast.web import headers as h
from walcast.web.options import SAFE_METHODS, Options
from walcast.web.proof import Origin, forwarded_text
from walcast.web.target import is_doubtful, target_of

# Servers close idle connections after two seconds (gunicorn) or more; one that closes just as a request is on its way
# cannot be told from one that fails after it was executed.
KEEP_ALIVE_S = 1.0
REPLAY_BYTES = 64 << 10  # of a body that the app here has read, and which goes to the primary after all
_WHITE = " \t"

NOT_SENT = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)
FAILED = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


log = logging.getLogger("walcast.web")


class NotSent(Exception):
    """The primary's app has seen nothing of it."""


class MaybeSent(Exception):
    """The primary's app may have seen it, and may have done what it says."""


class BadRequest(Exception):
    """Not one that is sent on: `status` and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class ClientGone(Exception):
    """The client did not send the whole body."""


@dataclass(frozen=True, slots=True)
class Head:
    """All of a request but its body. `database`: its name at the primary."""

    method: str
    path: str
    query: str
    headers: h.Headers
    origin: Origin
    database: str = ""


def check_target(method: str, path: str) -> None:
    """BadRequest for what is not sent on: it could be another path elsewhere, or a tunnel."""
    if is_doubtful(path):
        raise BadRequest(400, "a path with dots, backslashes or no slash is not sent on")
    if method.upper() == "CONNECT":
        raise BadRequest(501, "there are no tunnels")


def body_length(
    content_length: str | None, transfer_encoding: str | None, most: int, *, framed: bool = True
) -> int | None:
    """Of a request's body: 0 without one, None when its end will be seen. BadRequest when that is not clear, or it is
    too long. `framed`: without a word of it there is none, as in HTTP/1; not so in HTTP/2."""
    if transfer_encoding:
        if content_length is not None or transfer_encoding.strip(_WHITE).lower() != "chunked":
            raise BadRequest(400, "the length of the body is not clear")
        return None
    if content_length is None and not framed:
        return None
    text = (content_length or "0").strip(_WHITE)
    if not text.isascii() or not text.isdigit():
        raise BadRequest(400, "the length of the body is not a number")
    if len(text) > 18 or int(text) > most:
        raise too_large(most)
    return int(text)


def is_framed(method: str, version: str) -> bool:
    """Does a request of this version of HTTP, as in "HTTP/1.1", say whether it has a body? One that reads has none."""
    return method in SAFE_METHODS or version.removeprefix("HTTP/").startswith(("0", "1"))


def too_large(most: int) -> BadRequest:
    """The body is."""
    return BadRequest(413, f"more than {most} bytes are not sent on")


def no_room(error: Exception) -> BadRequest:
    """For the body; it may be sent again later."""
    log.warning(f"a request is not sent on: {error}", extra={"error": str(error)})
    return BadRequest(503, "there is no room for the body now; nothing was done")


def request_to(
    url: str, head: Head, content: Any, size: int, sha256: str, now_s: float, options: Options
) -> httpcore.Request:
    """For the app at `url`; `content` is an iterable of the body's bytes, or an asynchronous one, with its size and its
    digest."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    target = target_of(head.path, head.query)
    authority = parts.netloc.encode("ascii")
    passed = h.to_forward(head.headers, trust_forwarded=options.trust_forwarded)
    pairs = [(b"Host", authority)]
    pairs += [(name.encode("ascii"), value.encode("latin-1")) for name, value in passed]
    pairs += [(name.encode("ascii"), value.encode("latin-1")) for name, value in _who(head, passed)]
    proof = forwarded_text(head.origin, head.database, head.method, target, sha256, now_s, options.secrets)
    pairs.append((h.FORWARDED.encode("ascii"), proof.encode("ascii")))
    if size or head.method not in ("GET", "HEAD"):
        pairs.append((b"Content-Length", b"%d" % size))
    return httpcore.Request(
        head.method,
        httpcore.URL(
            scheme=parts.scheme.encode("ascii"),
            host=host.encode("ascii"),
            port=parts.port,
            target=(parts.path.rstrip("/") + target).encode("ascii"),
        ),
        headers=pairs,
        content=content,
        extensions={
            "timeout": {
                "connect": options.connect_s,
                "read": options.answer_s,
                "write": options.answer_s,
                "pool": options.connect_s,
            }
        },
    )


def _who(head: Head, passed: h.Headers) -> h.Headers:
    """What proxies say of a client. Behind one of yours its list of addresses goes on, else it begins here."""
    before = [value for name, value in passed if name == "x-forwarded-for"]
    named = {name for name, _ in passed}
    said = [("x-forwarded-host", head.origin.host), ("x-forwarded-proto", head.origin.proto)]
    if not before:
        said.append(("x-forwarded-for", head.origin.client))
    return [(name, value) for name, value in said if name not in named and value]


def says_not_primary(headers: list[tuple[bytes, bytes]]) -> bool:
    """Did a host answer that it is not the primary, and did nothing?"""
    return any(name.lower() == h.NOT_PRIMARY.encode() for name, _ in headers)


def is_answer(status: int) -> bool:
    """Is it one that the client can be given? No other protocol was asked for."""
    return 200 <= status < 600


def answer_headers(headers: list[tuple[bytes, bytes]]) -> h.Headers:
    """What the client gets of them."""
    return h.to_answer((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)


def never_used(stream: Any) -> str:
    """Why a connection must not be used, by the address that it leads to, whatever name that was found under; ""."""
    try:
        peer = stream.get_extra_info("server_addr")
    except OSError:  # it is gone already
        return ""
    host = str(peer[0]).partition("%")[0] if isinstance(peer, tuple) and peer else ""
    return f"{host} is an address of this machine or link alone" if is_never_used(host) else ""


def tls_context(options: Options) -> ssl.SSLContext:
    """The system's trust, or only `tls_ca`'s."""
    return ssl.create_default_context(cafile=options.tls_ca)
