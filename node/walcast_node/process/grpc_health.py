"""The health that anybody may ask for, and watch: so each peer has a share of those who watch."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health

from walcast_primary.publish.quotas import Limits, Places, who_of
from walcast_primary.publish.served_database import Refused

WATCHES = Limits("health checks that wait", all_of=200, each=20)


class Health(health.aio.HealthServicer):  # type: ignore[name-defined,misc]  # missing in the stubs
    """gRPC's."""

    def __init__(self) -> None:
        super().__init__()
        self._places = Places(WATCHES)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """As gRPC's."""
        try:
            place = self._places.take(who_of(context.peer()))
        except Refused as refused:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(refused))
            return
        with place:
            await super().Watch(request, context)
