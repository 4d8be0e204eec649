"""A page is no older than is allowed, or says so."""

from __future__ import annotations

from examples.consistency.guestbook import Visitor
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell, until

MAX_LAG_S = 0.5


def show(stage: Stage, tell: Tell) -> None:
    """Nothing new arrives at an edge, since its follower was killed; somebody reads there who has written nothing."""
    edge = stage.edges[-1]
    edge.kill()
    try:
        Visitor().post(stage.primary, "Sold out")
        until(lambda: edge.replica.lag().ms > 1000 * MAX_LAG_S, f"{edge} behind")

        stage.serve()
        page = Visitor().read(edge)
        tell.without("Sold out" not in page.posts, f"{page.by} shows an old page, and goes on to do so")

        stage.serve(max_lag_s=MAX_LAG_S)
        page = Visitor().read(edge)
        tell.given("Sold out" in page.posts, f"max_lag_s={MAX_LAG_S}: {edge} asks {page.by}")

        stage.serve(max_lag_s=MAX_LAG_S, on_lag="stale")
        page = Visitor().read(edge)
        said = page.headers.get("walcast-stale")
        tell.given(said is not None, f'on_lag="stale": {page.by} shows the old page and says "Walcast-Stale: {said}"')
    finally:
        edge.start()
