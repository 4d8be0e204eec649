"""Tell a monitor that all is well, by a GET of the URL that it gave.

Whoever knows such a URL can do the same, so it is a secret: of it only the host is ever shown.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

from walcast.errors import ConfigError, Unavailable
from walcast.redaction import shown_origin
from walcast.secret import Secret

TIMEOUT_S = 10.0


def check_url(url: Secret) -> Secret:
    """The URL; ConfigError when it is none that `ping` takes."""
    text = url.reveal()
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # which quotes it
        fine = False
    if fine and "@" in parts.netloc:
        raise ConfigError("a URL to ping holds no credentials: use one that has its token in the path")
    if not fine or not (text.isascii() and text.isprintable()) or " " in text:
        raise ConfigError(f"{shown_origin(text)} is nothing to ping: an http or https URL belongs there")
    return url


def ping(url: Secret) -> None:
    """GET it. Unavailable when nobody answers, or not with success. Redirects are followed."""
    text = check_url(url).reveal()
    where = urlsplit(text).hostname
    try:
        with urllib.request.urlopen(text, timeout=TIMEOUT_S) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        error.close()
        raise Unavailable(f"the ping of {where} was answered {error.code}") from None
    except urllib.error.URLError as error:  # its reason is the operating system's, or the TLS library's
        inside = error.reason
        why = inside.strerror or str(inside) if isinstance(inside, OSError) else "the answer leads nowhere"
        raise Unavailable(f"the ping of {where} failed: {why}; check the URL") from None
    except OSError as error:
        raise Unavailable(f"the ping of {where} failed: {error.strerror or type(error).__name__}") from None
    except (HTTPException, ValueError) as error:  # which may quote a URL, also of a redirect
        raise Unavailable(f"the ping of {where} failed: {type(error).__name__}") from None
