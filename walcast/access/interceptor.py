"""A token in the metadata of every call on a channel of threads, and a look at who has answered it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

if TYPE_CHECKING:
    from walcast.access.credentials import Credentials
    from walcast.wire import Address

# Also said where a connection was refused: the call's error then tells why.
_NOBODY_ANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class Checked(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """By `credentials`, as they are when the call is made."""

    def __init__(self, credentials: Credentials, to: Address) -> None:
        self._credentials = credentials
        self._to = to

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Unavailable when another user of this machine has answered, whatever it was."""
        details = client_call_details
        metadata = [*(details.metadata or ()), *self._credentials.present(self._to)]
        more = (getattr(details, name, None) for name in ("credentials", "wait_for_ready", "compression"))
        call = continuation(_Details(details.method, details.timeout, metadata, *more), request)
        if call.code() not in _NOBODY_ANSWERED:  # waits for it
            self._credentials.check_answered(self._to)
        return call
