"""Who wrote sees it on the next page, also at an edge that does not have it yet."""

from __future__ import annotations

from examples.consistency.guestbook import Visitor
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell


def show(stage: Stage, tell: Tell) -> None:
    """Two visitors post at an edge whose replica is held up; one of them keeps no cookie."""
    edge = stage.edges[0]
    stage.serve()

    forgetful, ada = Visitor(forgetful=True), Visitor()
    with edge.held_up():
        forgetful.post(edge, "Where is it?")
        page = forgetful.read(edge)
    tell.without("Where is it?" not in page.posts, f"no cookie: the next page, by {page.by}, does not have the post")

    stage.serve(read_wait_s=5.0)
    with edge.held_up(0.3):
        ada.post(edge, "Hello")
        page = ada.read(edge)
    waited = page.by == edge.name and "Hello" in page.posts
    tell.given(waited, f"the cookie: {page.by} waits {page.took_s:.1f} s, until it has the post")

    stage.serve(read_wait_s=0.2)
    with edge.held_up():
        ada.post(edge, "And again")
        page = ada.read(edge)
    asked = page.by == stage.primary.name and "And again" in page.posts
    tell.given(asked, f"the cookie, held up for longer than read_wait_s: {edge} asks {page.by}")
