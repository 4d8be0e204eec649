"""What callers may say of themselves and of what they want: checked before anything is kept, counted or logged."""

from __future__ import annotations

from walcast.errors import ConfigError, ProtocolViolation
from walcast.identifiers import check_identifier
from walcast.rpc import replication_pb2 as pb
from walcast.wire import Address
from walcast_primary.publish.served_database import Refused


def check_hello(hello: pb.Hello) -> None:
    """Refused for names that cannot be, and an address that nobody could go to."""
    _check(("database name", hello.database), ("follower id", hello.follower_id), ("follower's address", hello.address))
    if hello.address:
        _check_address(hello.address)


def check_copy(hello: pb.CopyHello) -> None:
    """Refused for names that cannot be."""
    _check(("database name", hello.database), ("follower id", hello.follower_id))


def check_barrier(request: pb.BarrierRequest) -> None:
    """Refused for a name that cannot be."""
    _check(("database name", request.database))


def check_switchover(request: pb.SwitchoverRequest) -> None:
    """Refused for names that cannot be."""
    _check(("database name", request.database), ("follower id", request.to))


def check_step_down(request: pb.StepDownRequest) -> None:
    """Refused for a name that cannot be, and an address that nobody could go to."""
    _check(("database name", request.database), ("primary's address", request.primary))
    _check_address(request.primary)


def _check(*named: tuple[str, str]) -> None:
    try:
        for kind, text in named:
            check_identifier(kind, text, optional=True)
    except ProtocolViolation as error:
        raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, str(error)) from error


def _check_address(text: str) -> None:
    try:
        Address.parse(text)
    except ConfigError as error:
        raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, str(error)) from error
