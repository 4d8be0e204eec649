"""The middleware's own answers, the same for WSGI and ASGI."""

from __future__ import annotations

from http import HTTPStatus

from walcast.web import headers as h
from walcast.web.options import Options

NO_PRIMARY = "there is no primary now; nothing was changed"
NO_WAY = (
    "this host does not know where the primary's app answers: start the primary with --app-url, see the log of this"
    " app; nothing was changed"
)
NO_DATABASE = "there is no database on this host: start walcast here, see the log of this app; nothing was changed"
NO_NODE = "walcast does not run on this host: start it again; nothing was changed"
NOT_ALLOWED = (
    "this app's user may not read what walcast says of the database: see the log of this app; nothing was changed"
)
MOVED = "the primary has just moved; nothing was done"
MAYBE = "the primary did not answer in time: what you asked for may have been done, or not; look before you repeat it"
READ_FAILED = "the primary did not answer in time"


def answer(status: int, why: str, options: Options, retry_s: int | None = None) -> tuple[h.Headers, bytes]:
    """Headers and body."""
    content_type, body = options.error_page(status, why)
    found: h.Headers = [
        ("content-type", content_type),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
    ]
    if retry_s is not None:
        found.append(("retry-after", str(retry_s)))
    return found, body


def status_line(status: int, reason: str = "") -> str:
    """As WSGI wants it."""
    if not reason or not reason.isascii() or not reason.isprintable():
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "Unknown"
    return f"{status} {reason}"
