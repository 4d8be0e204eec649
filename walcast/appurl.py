"""Where an app answers HTTP: what `--app-url` takes, a primary tells its followers, and requests are forwarded to."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from walcast.errors import ConfigError
from walcast.statusfile import TEXT_BYTES

_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_PATH = re.compile(r"(/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*/?")


def check_app_url(text: str) -> str:
    """`http[s]://HOST[:PORT][/PREFIX]`, without a slash at the end; "" stays "". ConfigError for anything else."""
    return text and _checked(text).geturl().rstrip("/")


def _checked(text: str) -> SplitResult:
    error = ConfigError(f"{text[:80]!r} is not where an app answers: http://HOST:PORT, or https, with a path at most")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise error from None
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    fine = parts.scheme in ("http", "https") and _HOST.fullmatch(host) and _PATH.fullmatch(parts.path)
    if not fine or parts.query or parts.fragment or text != parts.geturl() or len(text.encode()) > TEXT_BYTES:
        raise error
    return parts
