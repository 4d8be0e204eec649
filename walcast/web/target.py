"""A request's path as it is sent on: what the edge's app would have seen is what the primary's app sees."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote

# RFC 3986, 3.3 and 3.4: what stands for itself in a path and in a query. A `%` in a path is one that was decoded.
_IN_PATH = "/-._~!$&'()*+,;=:@"
_IN_QUERY = _IN_PATH + "?%"
_PLAIN = re.compile(r"(/[a-z0-9_~-]+)*/?")  # nothing to resolve in it
_DOTS = re.compile(r"(^|[/\\])\.{1,2}([/\\;]|$)")


def target_of(path: str, query: str) -> str:
    """`path` as the app sees it: decoded, its bytes as latin-1; `query` as it came. Always begins with one /."""
    return (
        "/"
        + quote(path.lstrip("/"), safe=_IN_PATH, encoding="latin-1")
        + ("?" + quote(query, safe=_IN_QUERY, encoding="latin-1") if query else "")
    )


def is_doubtful(path: str) -> bool:
    """Might whoever stands before the primary's app take it for another path? Browsers send none of these."""
    return not path.startswith("/") or "\\" in path or "\0" in path or _DOTS.search(path) is not None


def is_below(path: str, prefixes: Sequence[str]) -> bool:
    """Is it one of the prefixes, which are text, or below one, however slashes, dots and capitals are written?"""
    plain = path if _PLAIN.fullmatch(path) else _plain(path.encode("latin-1", "replace").decode("utf-8", "replace"))
    return any((plain + "/").startswith(_plain(prefix)) for prefix in prefixes)


@lru_cache
def _plain(path: str) -> str:
    """One way of writing it, with a slash at both ends."""
    found = posixpath.normpath("/" + path.replace("\\", "/").lstrip("/")).casefold()
    return found.rstrip("/") + "/"
