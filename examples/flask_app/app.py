"""Marginalia, a reading list: an ordinary Flask app on one SQLite file, which happens to be replicated.

    gunicorn --workers 4 --threads 8 'examples.flask_app.app:create_app()'

What replication asks of it are the lines that name `walcast`: one extension, one connection from it. The settings come
from the environment (FLASK_WALCAST_DATABASE, FLASK_SECRET_KEY, FLASK_REGION); README.md has them all.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Flask, Response, abort, current_app, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException, SecurityError, ServiceUnavailable
from werkzeug.wrappers import Response as Answer

from examples.flask_app import lab, live, store
from examples.flask_app.pictures import ACCEPT, MOST_BYTES, NotAPicture, recognise
from walcast.adapters.flask import Walcast
from walcast.errors import Unavailable

FORM_BYTES = 256 << 10  # the texts of a form, beside its picture
YEAR_S = 31_536_000
MOST_ID = (1 << 63) - 1
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'{also}"
PICTURE_POLICY = "default-src 'none'; sandbox"

pages = Blueprint("pages", __name__)
walcast = Walcast()


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The app. `config` wins over the environment."""
    app = Flask(__name__)
    app.config.from_mapping(
        REGION="this host",
        STREAMS=5,  # in one process, so that threads are left for pages
        MAX_CONTENT_LENGTH=MOST_BYTES + FORM_BYTES,
        # What a host says of itself is never another host's to answer.
        WALCAST_PRIVATE=["/static", "/live", "/lab", "/favicon.ico"],
        WALCAST_MAX_BODY=MOST_BYTES + FORM_BYTES,
        WALCAST_ERROR_PAGE=lambda code, why: (
            "text/html; charset=utf-8",
            app.jinja_env.get_template("refused.html").render(code=code, why=why).encode(),
        ),
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    walcast.init_app(app)
    app.register_blueprint(pages)
    live.init_app(app, walcast)
    lab.init_app(app, walcast)
    app.before_request(same_origin)
    app.after_request(headers)
    app.register_error_handler(HTTPException, error_page)
    app.register_error_handler(SecurityError, lambda error: ("This site has another name.\n", 400))
    app.register_error_handler(Unavailable, lambda error: error_page(ServiceUnavailable(str(error))))
    return app


@pages.get("/")
def index() -> str:
    """The newest entries, or what a search finds."""
    db, query = walcast.connection, request.args.get("q", "").strip()[:200]
    added = request.args.get("added", type=_id)
    return render_template(
        "index.html",
        query=query,
        entries=store.search(db, query) if query else store.newest(db, request.args.get("before", type=_id)),
        total=store.count(db),
        page=store.PAGE,
        added=added,
        missing=added is not None and store.entry(db, added) is None,
    )


@pages.get(f"/entries/<int(max={MOST_ID}):entry_id>")
def entry(entry_id: int) -> str:
    """One entry."""
    found = store.entry(walcast.connection, entry_id)
    if found is None:
        abort(404, "There is no such entry here. It may have been removed, or this region has not heard of it yet.")
    return render_template("entry.html", entry=found)


@pages.get("/add")
def form() -> str:
    """An empty form. Its number makes it one entry, however often it is sent."""
    return _form(store.Draft(secrets.token_urlsafe(16), ""), {})


@pages.post("/add")
def add() -> Answer | tuple[str, int]:
    """Keep the entry and go to the list, or show the form again and say what to change."""
    texts = {name: _text(name) for name in ("title", "author", "note", "via")}
    draft = store.Draft(request.form.get("key", ""), **texts)
    errors, picture = draft.errors(), None
    try:
        upload = request.files.get("picture")
        picture = recognise(upload.stream.read(MOST_BYTES + 1)) if upload else None
    except NotAPicture as error:
        errors["picture"] = str(error)
    if not errors:
        entry_id, is_this = store.add(walcast.connection, draft, picture, current_app.config["REGION"])
        if is_this:
            return redirect(url_for("pages.index", added=entry_id), 303)
        errors["key"] = "This form has been sent before, with something else in it. Send it again to add this, too."
    if "key" in errors:
        draft = store.Draft(secrets.token_urlsafe(16), **texts)
    return _form(draft, errors), 422


@pages.post(f"/entries/<int(max={MOST_ID}):entry_id>/remove")
def remove(entry_id: int) -> Answer:
    """Removing twice is no error: it is gone."""
    store.remove(walcast.connection, entry_id)
    return redirect(url_for("pages.index"), 303)


@pages.get("/pictures/<digest>")
def picture(digest: str) -> Response:
    """A picture, from its blob. Its name says what is in it, so that it can be kept for ever."""
    found = store.picture(walcast.connection, digest)
    if found is None:
        abort(404, "There is no such picture here.")
    response = Response(found.data, mimetype=found.type)
    response.headers["Content-Security-Policy"] = PICTURE_POLICY
    response.cache_control.public = response.cache_control.immutable = True
    response.cache_control.max_age = YEAR_S
    response.set_etag(digest)
    response.make_conditional(request)
    return response


@pages.get("/favicon.ico")
def favicon() -> Response:
    """For browsers that ask without being told where it is."""
    return current_app.send_static_file("mark.svg")


def same_origin() -> None:
    """A form of another site cannot write here. There is nobody to log in, so there is no token to check."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    said = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if said not in (None, "same-origin", "none") or (said is None and origin not in (None, request.host_url[:-1])):
        abort(403, "This form was sent from another site.")


def headers(response: Response) -> Response:
    """Only what this site serves itself, no scripts in pages, no guessing of types."""
    response.headers.setdefault("Content-Security-Policy", POLICY.format(also=lab.form_targets()))
    if response.mimetype == "text/html":
        response.headers.setdefault("Cache-Control", "private, no-cache")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def error_page(error: HTTPException) -> tuple[str, int]:
    """An error as a page of the site."""
    code = error.code or 500
    words = f"The picture is larger than {MOST_BYTES >> 20} MiB." if code == 413 else error.description
    return render_template("error.html", code=code, name=error.name, words=words), code


def _form(draft: store.Draft, errors: dict[str, str]) -> str:
    return render_template("add.html", draft=draft, errors=errors, longest=store.LONGEST, accept=ACCEPT)


def _id(text: str) -> int:
    """ValueError for what SQLite has no number for."""
    if not 0 <= (number := int(text)) <= MOST_ID:
        raise ValueError(text)
    return number


def _text(name: str) -> str:
    """Browsers send lines with CR LF."""
    return request.form.get(name, "").replace("\r\n", "\n").strip()
