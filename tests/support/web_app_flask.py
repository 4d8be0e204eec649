"""The notes of `web_app_wsgi` as a Flask app with the extension: the one site of WEB_SITES, for every host name."""

from __future__ import annotations

import json
import os

from flask import Flask, request

from walcast.adapters.flask import Walcast

((name, site),) = json.loads(os.environ["WEB_SITES"]).items()
app = Flask(__name__)
app.config["WALCAST_DATABASE"] = site["database"]
app.config.update({f"WALCAST_{key}".upper(): value for key, value in site["options"].items() if key != "secret"})
app.config["SECRET_KEY"] = site["options"]["secret"]
walcast = Walcast(app)


@app.get("/notes")
def notes() -> dict[str, object]:
    """All of them."""
    found = [row["name"] for row in walcast.connection.execute("SELECT name FROM notes ORDER BY id")]
    return {"notes": found, "region": name}


@app.post("/notes")
def add() -> tuple[dict[str, object], int]:
    """One more, of the name in the query."""
    with walcast.connection as db:
        row = db.execute("INSERT INTO notes (name) VALUES (?)", [request.query_string.decode()]).lastrowid
    return {"id": row, "region": name}, 201
