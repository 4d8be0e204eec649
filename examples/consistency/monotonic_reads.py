"""A visitor who is moved from one edge to another sees no older page there."""

from __future__ import annotations

from examples.consistency.guestbook import Visitor
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell


def show(stage: Stage, tell: Tell) -> None:
    """Somebody else has written. The first edge has that, the second one does not yet."""
    first, second = stage.edges
    with second.held_up():
        Visitor().post(stage.primary, "News")
        stage.wait_for(first)

        stage.serve()
        visitor = Visitor()
        pages = visitor.read(first), visitor.read(second)
        older = "News" in pages[0].posts and "News" not in pages[1].posts
        tell.without(older, f"{pages[0].by} shows the news; the next page, by {pages[1].by}, is older")

        stage.serve(monotonic_reads=True, read_wait_s=0.2)
        visitor = Visitor()
        pages = visitor.read(first), visitor.read(second)
        same = "News" in pages[0].posts and "News" in pages[1].posts
        tell.given(same, f"{pages[0].by} shows the news; {second} waits, then asks {pages[1].by}: the news")
