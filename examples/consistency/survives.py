"""What was confirmed by a follower survives the primary's host; what was not is kept aside, not lost."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

from examples.consistency.guestbook import Visitor
from examples.consistency.host import Host
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell, until


def kept_aside(stage: Stage, host: Host) -> list[str]:
    """The posts that only this host had, brought back as its summary.txt says."""
    folder = sorted((host.folder / "app.db-walcast" / "discarded").iterdir())[-1]
    fork = json.loads((folder / "summary.json").read_text())["base"].partition("/")[0]
    base, old = host.folder / "base.db", host.folder / "old.db"
    stage.walcast("restore", str(host.archive), "-o", str(base), "--txid", fork)
    stage.run("walcast.discarded", str(folder), str(base), str(old))
    with closing(sqlite3.connect(old)) as db:
        db.execute("ATTACH ? AS base", (str(base),))
        return [text for (text,) in db.execute("SELECT text FROM post WHERE id NOT IN (SELECT id FROM base.post)")]


def show(stage: Stage, tell: Tell) -> None:
    """Three posts at the primary. Before the last two its host loses its network, after them it is gone."""
    old, visitor = stage.primary, Visitor()
    stage.serve(followers=1)
    confirmed = visitor.post(old, "Confirmed")
    until(old.is_archived, "the archive level")
    old.cut_off()
    stage.serve()
    plain = visitor.post(old, "Plain")
    stage.serve(followers=1, barrier_s=0.1)
    unconfirmed = visitor.post(old, "Not confirmed")
    old.kill()

    until(lambda: any(host.state == "primary" for host in stage.hosts if host is not old), "another primary")
    new = stage.primary
    posts = Visitor().read(new).posts
    gone = plain.status == 303 and "Plain" not in posts
    tell.without(gone, f"answered {plain.status} by {old}, and gone: {new} has taken over")
    said = confirmed.headers.get("walcast-unconfirmed")
    tell.given(said is None and "Confirmed" in posts, f"followers=1: answered {confirmed.status}, and it is there")
    said = unconfirmed.headers.get("walcast-unconfirmed")
    told = said == "0/1" and "Not confirmed" not in posts
    tell.given(told, f'followers=1: answered "Walcast-Unconfirmed: {said}", and it is not there')

    old.heal()
    old.start()
    stage.settle()
    rows = kept_aside(stage, old)
    tell.given({"Plain", "Not confirmed"} <= set(rows), f"{old} has kept aside what only it had: {', '.join(rows)}")
