"""Middleware for apps that read a replica: reads are answered here, writes at the primary, and whoever wrote sees it.

    from walcast.web import WSGIMiddleware        # Flask, Django, …
    app = WSGIMiddleware(app, "/srv/app.db", secret=SECRET)

    from walcast.web import ASGIMiddleware        # Starlette, FastAPI, …

Needs `pip install walcast[web]`. Names are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walcast.web.asgi import ASGIMiddleware
    from walcast.web.core import Request
    from walcast.web.options import Options
    from walcast.web.wsgi import WSGIMiddleware

__all__ = ["ASGIMiddleware", "Options", "Request", "WSGIMiddleware"]

_ELSEWHERE = {
    "ASGIMiddleware": "walcast.web.asgi",
    "Options": "walcast.web.options",
    "Request": "walcast.web.core",
    "WSGIMiddleware": "walcast.web.wsgi",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_ELSEWHERE[name]), name)
    globals()[name] = value
    return value
