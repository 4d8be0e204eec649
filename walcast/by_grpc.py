"""A primary asked over gRPC, wherever it is: at one of several addresses, or where one of those says that it went.

gRPC is imported with the first call, and a channel is opened then and kept. A process forked after that opens its own;
but gRPC itself does not promise to survive a fork once it was used, so make the first call in the worker, not before
the fork.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.identifiers import printable
from walcast.levels import Level
from walcast.position import Position
from walcast.token import NotPrimary, Token

if TYPE_CHECKING:
    import grpc

    from walcast.access.credentials import Credentials
    from walcast.rpc import replication_pb2 as pb

CONNECT_MS = 1000  # at one of several addresses
FOLLOW_MOST = 2  # addresses that nodes name, beside those that are given

T = TypeVar("T")


class ByGrpc:
    """`addresses` are HOST:PORT, with commas between; `tls` the files `ca`, `cert`, `key` and `token_file`, of which
    `folder` gives the first three."""

    def __init__(
        self,
        addresses: str,
        name: str,
        tls: Mapping[str, Path],
        insecure: bool = False,
        token: str = "",
        folder: Path | None = None,
    ) -> None:
        self._name = name
        self._tls = tls
        self._folder = folder
        self._insecure = insecure
        self._token = token
        self._credentials: tuple[int, Credentials] | None = None  # those of a process
        self._given = [address.strip() for address in addresses.split(",")]
        self._last = self._given[0]  # where the primary was found last, or is looked for first
        # By process. A parent's channel stays here untouched in its child, so that nothing tries to close it there.
        self._channels: dict[tuple[int, str], tuple[int, grpc.Channel]] = {}

    def __str__(self) -> str:
        return self._last

    def barrier(self, followers: int, level: Level, timeout_s: float, answer_s: float) -> tuple[Token, Position, int]:
        """Token, position, and how many followers have it."""
        from walcast import wire
        from walcast.rpc import replication_pb2 as pb

        # 0 would ask for the primary's own bound.
        timeout_ms = max(1, math.ceil(timeout_s * 1000))
        levels = {Level.DURABLE: pb.BARRIER_LEVEL_DURABLE, Level.APPLIED: pb.BARRIER_LEVEL_APPLIED}
        request = pb.BarrierRequest(
            database=self._name, followers=followers, timeout_ms=timeout_ms, level=levels[level]
        )

        def ask(address: str, left_s: float) -> tuple[Token, Position, int]:
            reply: pb.BarrierReply = self._call(address, "Barrier", request, left_s)
            if reply.HasField("refusal"):
                raise _refused(reply.refusal, address)
            position = wire.position_of(reply.position)
            return Token.of(reply.position.term, position.txid), position, reply.followers

        return self._find(ask, answer_s)

    def status(self, answer_s: float) -> dict[str, Any]:
        """As data: of the node that was the primary last, or of the first that answers."""
        from walcast.facts import primary_facts
        from walcast.rpc import replication_pb2 as pb

        def ask(address: str, left_s: float) -> dict[str, Any]:
            reply: pb.StatusReply = self._call(address, "Status", pb.StatusRequest(), left_s)
            return primary_facts(reply)

        return self._find(ask, answer_s)

    def close(self) -> None:
        """Close this process's channels; a later call opens new ones."""
        for key in list(self._channels):
            if key[0] == os.getpid() and (kept := self._channels.pop(key, None)) is not None:
                kept[1].close()

    def _find(self, ask: Callable[[str, float], T], answer_s: float) -> T:
        """The answer of the node that is the primary: each address once, from where it was last, and first where a node
        says that it is. What is wrong for good is raised at once.

        Of a single address only that node's answer counts: an app that writes there asks whether what it has written is
        covered, and another primary's token says nothing of it.
        """
        until_s = time.monotonic() + answer_s
        first = self._last
        left = [first, *(address for address in self._given if address != first)]
        tried: dict[str, Unavailable] = {}
        follow = FOLLOW_MOST if len(self._given) > 1 else 0
        while left and (left_s := until_s - time.monotonic()) > 0:
            address = left.pop(0)
            try:
                answer = ask(address, left_s)
            except Unavailable as error:
                tried[address] = error
                named = error.primary if isinstance(error, NotPrimary) else ""
                if named and named not in tried and follow and self._may_go_to(named):
                    follow -= 1
                    left = [named, *(other for other in left if other != named)]
            else:
                self._last = address
                return answer
        self._last = left[0] if left else self._given[0]
        raise _in_vain(list(tried.values()))

    def _may_go_to(self, address: str) -> bool:
        """Not in plain text to another machine because a node says so, when that was not allowed."""
        try:
            self._channel(address)
        except ConfigError:
            return False
        return True

    def _call(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        import grpc

        from walcast import wire
        from walcast.rpc import replication_pb2_grpc as rpc

        stub: Any = rpc.ReplicationStub
        try:
            call = getattr(stub(self._channel(address)), method)
            answer = call(request, timeout=timeout_s, metadata=self._shown().present(wire.Address.parse(address)))
        except grpc.RpcError as error:
            raise _translated(error, address, timeout_s, self._shown()) from error
        except ValueError as error:  # gRPC's answer to a call on a channel that another thread has just closed
            raise Unavailable(f"{address}: {error}") from error
        self._shown().check_answered(wire.Address.parse(address))
        return answer

    def _channel(self, address: str) -> grpc.Channel:
        key = os.getpid(), address
        shown = self._shown()
        shown.look_again()
        kept = self._channels.get(key)
        if kept is not None and kept[0] != shown.version:
            self._channels.pop(key, None)  # not closed: another thread may have a call on it
            kept = None
        if kept is None:
            opened = shown.version, self._open(address, shown)
            kept = self._channels.setdefault(key, opened)
            if kept is not opened:  # another thread was faster
                opened[1].close()
        return kept[1]

    def _shown(self) -> Credentials:
        """What this process shows."""
        from walcast import wire
        from walcast.access.credentials import Credentials
        from walcast.access.folder import files_of

        if self._credentials is None or self._credentials[0] != os.getpid():
            files: dict[str, Any] = {**self._tls, **(files_of(self._folder) if self._folder else {})}
            tls = wire.Tls(**files, insecure=self._insecure)
            self._credentials = os.getpid(), Credentials(tls, self._token)
        return self._credentials[1]

    def _open(self, text: str, shown: Credentials) -> grpc.Channel:
        import grpc

        from walcast import wire

        if ":" not in text and "@" not in text:
            raise ConfigError(
                f"{printable(text)} is neither HOST:PORT nor a file that is here; "
                f"for a database that is still to come write ./{printable(text)}"
            )
        address = wire.Address.parse(text)
        credentials = shown.channel(address)
        # A primary that is back is found within a second, not after gRPC's own back-off of up to two minutes.
        options = [
            *address.options,
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if len(self._given) > 1:  # one that does not answer at all must leave time for the others
            options.append(("grpc.min_reconnect_backoff_ms", CONNECT_MS))
        if credentials is None:
            return grpc.insecure_channel(str(address), options=options)
        return grpc.secure_channel(str(address), credentials, options=options)


def _in_vain(errors: list[Unavailable]) -> Unavailable:
    """One error for what each address said."""
    if len(errors) == 1:
        return errors[0]
    text = "; ".join(map(str, errors))
    named = [error.primary for error in errors if isinstance(error, NotPrimary)]
    return NotPrimary(text, primary=named[-1]) if named else Unavailable(text)


def _translated(error: grpc.RpcError, address: str, timeout_s: float, shown: Credentials) -> WalcastError:
    """gRPC's error → ours, told apart by its status code."""
    import grpc

    from walcast import wire

    assert isinstance(error, grpc.Call)
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ConfigError(f"{address}: not a walcast primary")
    return Unavailable(shown.failure(wire.Address.parse(address), code.name, error.details(), timeout_s))


def _refused(refusal: pb.Refusal, address: str) -> WalcastError:
    """What a refusal means for an app, by its kind; one that this version does not know may pass."""
    from walcast.rpc import replication_pb2 as pb

    text = f"{address}: {refusal.detail}"
    if refusal.kind == pb.REFUSAL_KIND_NOT_PRIMARY:
        return NotPrimary(text, primary=refusal.primary)
    final = (pb.REFUSAL_KIND_PROTOCOL_VERSION, pb.REFUSAL_KIND_UNKNOWN_DATABASE)
    return (ConfigError if refusal.kind in final else Unavailable)(text)
