"""The app of the examples, and somebody who visits it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import Flask, redirect, request
from werkzeug.wrappers import Response

from walcast.adapters.flask import Walcast

if TYPE_CHECKING:
    from examples.consistency.host import Host

TIMEOUT_S = 20.0
SCHEMA = """
CREATE TABLE post (id INTEGER PRIMARY KEY, text TEXT NOT NULL, key TEXT UNIQUE);
"""


def guestbook(host: str, database: Path, **options: Any) -> Flask:
    """A Flask app on the database of a host; `options` are those of `walcast.web`."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="the same on every host", WALCAST_DATABASE=str(database))
    app.config.update({f"WALCAST_{name.upper()}": value for name, value in options.items()})
    walcast = Walcast(app)

    @app.get("/")
    def index() -> list[str]:
        return [row["text"] for row in walcast.connection.execute("SELECT text FROM post ORDER BY id")]

    @app.post("/")
    def sign() -> Response:
        with walcast.connection as db:
            db.execute(
                "INSERT INTO post (text, key) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
                (request.form["text"], request.form.get("key")),
            )
        return redirect("/", 303)

    @app.after_request
    def signed(response: Response) -> Response:
        response.headers["Answered-By"] = host
        return response

    return app


@dataclass(frozen=True, slots=True)
class Page:
    """`by`: the host whose app answered; `posts`: the texts that are to be read on it."""

    status: int
    by: str
    posts: list[str]
    headers: dict[str, str]
    took_s: float


class Visitor:
    """Somebody with a browser; one who is `forgetful` keeps no cookies, and so no token."""

    def __init__(self, *, forgetful: bool = False) -> None:
        self._cookies: dict[str, str] = {}
        self._forgetful = forgetful

    def read(self, host: Host) -> Page:
        """The guestbook, as this host shows it."""
        return self._ask(host, "GET", None)

    def post(self, host: Host, text: str, *, key: str | None = None) -> Page:
        """A form, sent to this host; what it is answered is not followed."""
        return self._ask(host, "POST", urlencode({"text": text} | ({"key": key} if key else {})))

    def _ask(self, host: Host, method: str, body: str | None) -> Page:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        began_s = time.monotonic()
        connection = HTTPConnection("127.0.0.1", host.app_port, timeout=TIMEOUT_S)
        try:
            connection.request(method, "/", body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if not self._forgetful:
            for value in answer.headers.get_all("Set-Cookie", []):
                self._cookies |= {name: morsel.value for name, morsel in SimpleCookie(value).items()}
        said = {name.lower(): value for name, value in answer.getheaders()}
        posts = json.loads(data) if answer.headers.get_content_type() == "application/json" else []
        return Page(answer.status, said.get("answered-by", ""), posts, said, time.monotonic() - began_s)
