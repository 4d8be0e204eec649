"""A Flask app with the extension, as an app server starts it: `books` of the database that the environment names."""

from __future__ import annotations

import os

from flask import Flask, g, request

from walcast.adapters.flask import Walcast

app = Flask(__name__)
app.config.from_prefixed_env("BOOKS")
walcast = Walcast(app)


@app.get("/")
def index() -> dict[str, object]:
    """All titles, and who asks, as the app sees it."""
    titles = [row["title"] for row in walcast.connection.execute("SELECT title FROM books ORDER BY id")]
    return {"titles": titles, "region": os.environ["REGION"], "client": request.remote_addr, "url": request.base_url}


@app.post("/")
def add() -> dict[str, object]:
    """One more."""
    with walcast.connection as db:
        db.execute("INSERT INTO books (title) VALUES (?)", [request.form["title"]])
    return {"region": os.environ["REGION"], "client": request.remote_addr, "url": request.base_url}


@app.get("/visit")
def visit() -> dict[str, object]:
    """A GET that writes."""
    with walcast.connection as db:
        db.execute("INSERT INTO books (title) VALUES ('a visit')")
    return {"region": os.environ["REGION"]}


@app.get("/late")
def late() -> dict[str, object]:
    """A GET that writes, and commits when all is said."""
    walcast.connection.execute("INSERT INTO books (title) VALUES ('a visit')")
    g.late = True
    return {"region": os.environ["REGION"]}


@app.teardown_request
def commit(error: BaseException | None) -> None:
    """As some extensions do."""
    if g.get("late"):
        walcast.connection.commit()


@app.post("/broken")
def broken() -> dict[str, object]:
    """An error of the app's own, which is no walcast's."""
    walcast.connection.execute("SELECT * FROM nowhere")
    return {}
