"""Roles of those who show certificates and tokens to a real primary."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from support.certs import CLIENT, NODE, OPERATOR, Authority, token_file, token_of
from support.nodes import Node, poll, primary

from walcast import wire
from walcast.access.credentials import Credentials
from walcast.access.issuing import issue
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc

CALL_S = 10.0
DENIED, UNKNOWN, OK = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK


def create(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
    return path


def asked(address: str, credentials: Credentials, ask: str) -> grpc.StatusCode:
    """What comes of a call with these."""
    hello = pb.Hello(protocol=wire.PROTOCOL_VERSION, database="app", follower_id="edge", observer=True)
    to = wire.Address.parse(address)
    encrypted = credentials.channel(to)
    channel = grpc.secure_channel(address, encrypted) if encrypted else grpc.insecure_channel(address)
    with channel:
        stub: Any = rpc.ReplicationStub(channel)
        more: Any = {"timeout": CALL_S, "metadata": credentials.present(to)}
        try:
            if ask == "Stream":
                next(stub.Stream(iter([pb.FollowerMessage(hello=hello)]), **more))
            elif ask == "Copy":
                next(stub.Copy(iter([pb.CopyRequest(hello=pb.CopyHello(protocol=1, database="app"))]), **more))
            else:
                request = {
                    "Status": pb.StatusRequest(),
                    "Barrier": pb.BarrierRequest(database="app"),
                    "Switchover": pb.SwitchoverRequest(database="app", to="nobody"),
                    "StepDown": pb.StepDownRequest(database="app", term=2, primary="192.0.2.9:1"),
                }[ask]
                getattr(stub, ask)(request, **more)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined,no-any-return]
        return OK


READS, FOLLOWS = {"Status", "Barrier"}, {"Stream", "Copy"}
MAY = {
    (NODE, "edge"): READS | FOLLOWS | {"StepDown"},
    (CLIENT, "reports"): READS,
    (OPERATOR, "anna"): READS | FOLLOWS | {"Switchover", "StepDown"},
}
CALLS = sorted(READS | FOLLOWS | {"Switchover", "StepDown"})


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def node(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with primary(create(tmp_path_factory.mktemp("node") / "app.db"), *ca.flags("origin")) as started:
        yield started


@pytest.mark.parametrize("who", MAY)
def test_a_certificate_gives_the_roles_of_its_kind_and_no_more(node: Node, ca: Authority, who: Any) -> None:
    kind, name = who
    credentials = Credentials(wire.Tls(ca.ca, *ca.files(name, kind)))
    found = {call: asked(node.address, credentials, call) for call in CALLS}
    assert found == {call: OK if call in MAY[who] else DENIED for call in CALLS}


def test_a_certificate_that_names_two_is_nobody_also_for_the_user_of_the_node(node: Node, ca: Authority) -> None:
    certificate, key = ca.pair
    own, own_key = issue(ca.pair, NODE, "edge", ())
    two = [x509.UniformResourceIdentifier(f"walcast://{which}") for which in ("node/edge", "operator/anna")]
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(certificate.subject)
        .public_key(own_key.public_key())
        .serial_number(7)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName(two), critical=False)
    )
    shown = ca.write("two", (builder.sign(key, hashes.SHA256()), own_key))
    credentials = Credentials(wire.Tls(ca.ca, *shown))
    assert {asked(node.address, credentials, call) for call in CALLS} == {UNKNOWN}
    assert poll(lambda: node.events("certificate refused"))


def test_a_token_counts_until_it_is_taken_out_of_the_servers_file(ca: Authority, tmp_path: Path) -> None:
    (token, line), (other, other_line) = token_of("edge"), token_of("edge")
    accepted = token_file(tmp_path / "accepted", line, other_line)
    cert, key = ca.files("served")
    flags = ("--tls-cert", cert, "--tls-key", key, "--token-file", accepted)
    old, new = (Credentials(wire.Tls(ca.ca), one) for one in (token, other))
    with primary(create(tmp_path / "app.db"), *flags) as node:
        for credentials in (old, new):
            assert asked(node.address, credentials, "Copy") is OK
            assert asked(node.address, credentials, "Switchover") is DENIED
        token_file(accepted, other_line)
        node.signal(signal.SIGHUP)
        node.wait_event("SIGHUP: read again")
        assert asked(node.address, old, "Copy") is UNKNOWN
        assert asked(node.address, new, "Copy") is OK
        assert token not in node.err.read_text()
