"""A primary as an app sees it: a barrier whose token a replica can wait for, and the primary's status.

gRPC is imported with the first call, and the channel is opened then and kept. A process forked after that opens its
own; but gRPC itself does not promise to survive a fork once it was used, so make the first call in the worker, not
before the fork.

Every call has a deadline. gRPC's errors and the primary's refusals become walcast's here.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.token import NotEnoughFollowers, Token

if TYPE_CHECKING:
    import grpc

    from walcast.rpc import replication_pb2 as pb

DEADLINE_SLACK_S = 1.0
STATUS_TIMEOUT_S = 5.0
BARRIER_MOST_S = 30.0
DETAIL_CHARACTERS = 200


class Primary:
    """The primary at `address`, HOST:PORT; `name` is the database's, needed when it serves several.

    Beyond this machine it takes TLS, given as PEM files (`tls_ca` to trust the primary by, `tls_cert` and `tls_key`
    to show it), or `insecure=True` for plain text. Threads may share one. ConfigError, from the first call on, when
    the address or a file is wrong.
    """

    def __init__(
        self,
        address: str,
        name: str = "",
        *,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        insecure: bool = False,
    ) -> None:
        self.address = address
        self.name = name
        self._files = {
            key: Path(file)
            for key, file in {"ca": tls_ca, "cert": tls_cert, "key": tls_key}.items()
            if file is not None
        }
        self._insecure = insecure
        # By process. A parent's channel stays here untouched in its child, so that nothing tries to close it there.
        self._channels: dict[int, grpc.Channel] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, {self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; a later call opens a new one."""
        channel = self._channels.pop(os.getpid(), None)
        if channel is not None:
            channel.close()

    def barrier(self, followers: int = 0, timeout: float = 2.0) -> Token:
        """A token that covers every commit made before this call, by anybody; give it to `Replica.wait_for`.

        With `followers`, return only once that many different followers have applied it. `timeout` is in seconds, 30 at
        most. NotEnoughFollowers when there were fewer in time: its `token` is valid all the same. Unavailable when the
        primary does not answer, cannot capture or is stopping; ConfigError when it has no such database.
        """
        if not timeout >= 0 or followers < 0:
            raise ValueError(f"barrier(followers={followers}, timeout={timeout}): negative")
        from walcast import wire
        from walcast.rpc import replication_pb2 as pb

        timeout = min(timeout, BARRIER_MOST_S)
        # 0 would ask for the primary's own bound.
        timeout_ms = max(1, math.ceil(timeout * 1000))
        request = pb.BarrierRequest(database=self.name, followers=followers, timeout_ms=timeout_ms)
        reply: pb.BarrierReply = self._call("Barrier", request, timeout + DEADLINE_SLACK_S)
        if reply.HasField("refusal"):
            raise _refused(reply.refusal, self.address)
        position = wire.position_of(reply.position)
        token = Token.of(reply.position.term, position.txid)
        if reply.followers < followers:
            raise NotEnoughFollowers(
                f"{self.address}: {reply.followers} of {followers} followers have applied {token} within {timeout:g} s",
                token=token,
                position=position,
                applied=reply.followers,
                wanted=followers,
            )
        return token

    def status(self) -> dict[str, Any]:
        """What `walcast status --json` prints: role, term, databases with their archive and followers."""
        from walcast.facts import primary_facts
        from walcast.rpc import replication_pb2 as pb

        reply: pb.StatusReply = self._call("Status", pb.StatusRequest(), STATUS_TIMEOUT_S)
        return primary_facts(reply)

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        import grpc

        from walcast.rpc import replication_pb2_grpc as rpc

        stub: Any = rpc.ReplicationStub
        try:
            return getattr(stub(self._channel()), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _translated(error, self.address, timeout_s) from error
        except ValueError as error:  # gRPC's answer to a call on a channel that another thread has just closed
            raise Unavailable(f"{self.address}: {error}") from error

    def _channel(self) -> grpc.Channel:
        pid = os.getpid()
        channel = self._channels.get(pid)
        if channel is None:
            opened = self._open()
            channel = self._channels.setdefault(pid, opened)
            if channel is not opened:  # another thread was faster
                opened.close()
        return channel

    def _open(self) -> grpc.Channel:
        import grpc

        from walcast import wire

        address = wire.Address.parse(self.address)
        credentials = wire.Tls(**self._files, insecure=self._insecure).channel(address)
        # A primary that is back is found within a second, not after gRPC's own back-off of up to two minutes.
        options = [*wire.OPTIONS, ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        if credentials is None:
            return grpc.insecure_channel(str(address), options=options)
        return grpc.secure_channel(str(address), credentials, options=options)


def _translated(error: grpc.RpcError, address: str, timeout_s: float) -> WalcastError:
    """gRPC's error → ours, told apart by its status code."""
    import grpc

    assert isinstance(error, grpc.Call)
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ConfigError(f"{address}: not a walcast primary")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"{address}: no answer within {timeout_s:g} s")
    detail = " ".join((error.details() or code.name).split())[:DETAIL_CHARACTERS]
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"{address}: cannot be reached ({detail})")
    return Unavailable(f"{address}: {code.name}: {detail}")


def _refused(refusal: pb.Refusal, address: str) -> WalcastError:
    """What a refusal means for an app, by its kind; one that this version does not know may pass."""
    from walcast.rpc import replication_pb2 as pb

    final = (pb.REFUSAL_KIND_PROTOCOL_VERSION, pb.REFUSAL_KIND_UNKNOWN_DATABASE)
    kind = ConfigError if refusal.kind in final else Unavailable
    return kind(f"{address}: {refusal.detail}")
