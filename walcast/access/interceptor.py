"""A token in the metadata of every call on a channel of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

if TYPE_CHECKING:
    from walcast.access.credentials import Credentials
    from walcast.wire import Address


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class ShowToken(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Of `credentials`, as it is when the call is made."""

    def __init__(self, credentials: Credentials, to: Address) -> None:
        self._credentials = credentials
        self._to = to

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Add it."""
        details = client_call_details
        metadata = [*(details.metadata or ()), *self._credentials.present(self._to)]
        more = (getattr(details, name, None) for name in ("credentials", "wait_for_ready", "compression"))
        return continuation(_Details(details.method, details.timeout, metadata, *more), request)
