"""Tell a monitor that all is well, by a GET of the URL that it gave."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

from walcast.errors import ConfigError, Unavailable

TIMEOUT_S = 10.0


def check_url(url: str) -> str:
    """The URL; ConfigError when it is none that `ping` takes."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is nothing to ping: an http or https URL belongs there")
    return url


def ping(url: str) -> None:
    """GET it. Unavailable when nobody answers, or not with success. Redirects are followed."""
    where = urlsplit(url).hostname
    try:
        with urllib.request.urlopen(check_url(url), timeout=TIMEOUT_S) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        error.close()
        raise Unavailable(f"the ping of {where} was answered {error.code}") from error
    except (OSError, HTTPException) as error:
        raise Unavailable(f"the ping of {where} failed: {error}") from error
