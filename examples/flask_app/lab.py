"""Behind the page: what the runner (`python -m examples.flask_app`) lets a visitor try out.

An app has no need of any of this. These pages are there only when the runner has said where it listens (LAB_URL) and
with which word it is asked (LAB_KEY); every region answers them itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, abort, current_app, redirect, render_template, request, url_for
from werkzeug.http import parse_cookie
from werkzeug.wrappers import Response as Answer

from examples.flask_app import live

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from walcast.adapters.flask import Walcast

TIMEOUT_S = 10.0
LOOK_S = 0.2
FORGETFUL = "forgetful"  # the cookie of visitors who want to see what happens without read-your-writes
TOKEN_COOKIES = "walcast-"  # how their names begin

Facts = dict[str, Any]

pages = Blueprint("lab", __name__, url_prefix="/lab")


def init_app(app: Flask, walcast: Walcast) -> None:
    """Nothing where there is no runner."""
    app.config.setdefault("REGIONS", {})  # region → its address, for the way from one to the other
    with_lab = bool(app.config.get("LAB_URL"))
    app.context_processor(lambda: {"lab": with_lab, "regions": app.config["REGIONS"], "forgetful": is_forgetful()})
    if not with_lab:
        return
    app.wsgi_app = Forgetful(app.wsgi_app)  # type: ignore[method-assign]
    app.register_blueprint(pages)

    @app.get("/lab/live")
    def lab_live() -> Response:
        """The bar and the parts of this page. It asks the runner again and again, as long as somebody looks."""
        control, replica, region = Control.of(app), walcast.replica, app.config["REGION"]

        def parts() -> live.Parts:
            state = control.ask("GET", "/state")
            names = ("regions", "arrivals", "drill")
            return live.bar_part(app, replica, region) | {
                name: app.jinja_env.get_template(f"_{name}.html").render(state=state) for name in names
            }

        return live.stream(parts, lambda: time.sleep(LOOK_S))


class Control:
    """The runner."""

    def __init__(self, url: str, key: str) -> None:
        self._address = urlsplit(url).netloc
        self._key = key

    @classmethod
    def of(cls, app: Flask) -> Control:
        """The one that started this app."""
        return cls(app.config["LAB_URL"], str(app.config["LAB_KEY"]))

    def ask(self, method: str, path: str, **fields: Any) -> Facts:
        """Its answer; OSError or HTTPException without one."""
        connection = HTTPConnection(self._address, timeout=TIMEOUT_S)
        try:
            headers = {"Content-Type": "application/json", "X-Lab-Key": self._key}
            connection.request(method, path, json.dumps(fields) if fields else None, headers)
            answer: Facts = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()


class Forgetful:
    """WSGI: for visitors who asked for it, hides what they have written from the middleware below. Their own entry may
    be missing right after they have sent it, which is what `walcast.web` is there to prevent."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Leave the token's cookie out."""
        cookies = parse_cookie(environ)
        if FORGETFUL in cookies:
            parts = (part.strip() for part in environ["HTTP_COOKIE"].split(";"))
            kept = "; ".join(part for part in parts if not part.startswith(TOKEN_COOKIES))
            environ = {**environ, "HTTP_COOKIE": kept}
        return self._app(environ, start_response)


def is_forgetful() -> bool:
    """Has this visitor turned read-your-writes off?"""
    return FORGETFUL in request.cookies


def form_targets() -> str:
    """For the policy of this page: its forms may lead to the other regions, when they end this one."""
    if not request.path.startswith("/lab"):
        return ""
    return "".join(f" {url}" for url in current_app.config["REGIONS"].values())


@pages.get("")
def index() -> str:
    """What is where, and what can be tried."""
    return render_template("lab.html", state=_ask("GET", "/state"))


@pages.post("/distances")
def distances() -> Answer:
    """How far away each edge is, and by how much its stream is held back."""
    fields = {name: request.form.get(name, type=int) for name in request.form}
    _ask("POST", "/distances", **fields)
    return _back("distances")


@pages.post("/line")
def line() -> Answer:
    """A line written at the primary."""
    _ask("POST", "/line", text=request.form.get("text", "").strip()[:100] or "A line")
    return _back("arrivals")


@pages.post("/reading")
def reading() -> Answer:
    """Read-your-writes on or off, for this visitor."""
    response = _back("reading")
    if request.form.get("mine") == "off":
        response.set_cookie(FORGETFUL, "1", httponly=True, samesite="Lax")
    else:
        response.delete_cookie(FORGETFUL, httponly=True, samesite="Lax")
    return response


@pages.post("/kill")
def kill() -> Answer:
    """The primary's region, which may be this one: go on in another."""
    answer = _ask("POST", "/kill")
    if answer["killed"] != current_app.config["REGION"]:
        return _back("drill")
    return redirect(f"{answer['next']}{url_for('lab.index')}#drill", 303)


@pages.post("/back")
def bring_back() -> Answer:
    """The region that was killed."""
    _ask("POST", "/back")
    return _back("drill")


def _ask(method: str, path: str, **fields: Any) -> Facts:
    try:
        answer = Control.of(current_app).ask(method, path, **fields)
    except (OSError, HTTPException, ValueError) as error:
        abort(502, f"The runner does not answer: {error}")
    if "error" in answer:
        abort(409, answer["error"])
    return answer


def _back(part: str) -> Answer:
    return redirect(url_for("lab.index", _anchor=part), 303)
