"""Why another node does not answer is said in words for people, with its address: none of gRPC's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from support.certs import CLIENT, Authority
from support.nodes import Node, primary
from support.replica_set import create_database

from walcast.errors import ConfigError, Unavailable
from walcast.unreachable import Spoken, failure_words
from walcast.wire import Address, Tls
from walcast_node.commands.status_facts import primary_status

LAST = "failed to connect to all addresses; last error: "
RAW = ("StatusCode", "failed to connect", "UNAVAILABLE", "UNKNOWN", "SSL", "TSI", "ipv4:", "Socket closed", "Deadline")
PLAIN, TLS, SHOWN = Spoken(), Spoken(True), Spoken(True, True)


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode])
@pytest.mark.parametrize("details", ["", None, "\x1b[31m" + "x" * 5000, "failed to connect to all addresses"])
def test_whatever_grpc_says_is_one_bounded_line(code: str, details: str | None) -> None:
    words = failure_words(code, details, PLAIN, 5.0)
    assert words.isprintable()
    assert words
    assert len(words) < 500


@pytest.mark.parametrize(
    ("details", "spoken", "told"),
    [
        ("UNKNOWN: ipv4:10.0.0.1:1: Failed to connect to remote host: Connection refused", TLS, "nobody listens there"),
        ("UNAVAILABLE: ipv4:1.1.1.1:1: Socket closed", PLAIN, "may want TLS"),
        ("UNAVAILABLE: ipv4:1.1.1.1:1: Socket closed", TLS, "--tls"),
        ("UNAVAILABLE: ipv4:1.1.1.1:1: Socket closed", SHOWN, "does not accept the certificate"),
        ("UNKNOWN: ipv4:1.1.1.1:1: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL "
         "routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: unable to get issuer certificate", TLS, "--tls-ca"),
        ("UNKNOWN: Peer name 10.0.0.9 is not in peer certificate", TLS, "--host"),
        ("UNAVAILABLE: ipv4:1.1.1.1:1: Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame "
         "type 79)", PLAIN, "not a walcast node"),
        ("UNKNOWN: ipv4:1.1.1.1:1: Failed to connect to remote host: No route to host", TLS, "network"),
        ("UNKNOWN: ipv4:1.1.1.1:1: something new", TLS, "something new"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_what_to_do(details: str, spoken: Spoken, told: str) -> None:
    words = failure_words("UNAVAILABLE", LAST + details, spoken)
    assert told in words
    assert not [raw for raw in RAW if raw in words]


@pytest.mark.parametrize(
    "details",
    [
        "errors resolving h:1: [field:hostname lookup error:address lookup failed for h:1: Domain name not found]",
        "DNS resolution failed for h:7420: C-ares status is not ARES_SUCCESS",
    ],
)
def test_a_name_that_nobody_knows_is_said_to_be_that(details: str) -> None:
    assert "the name of the host is not known" in failure_words("UNAVAILABLE", details, SHOWN)


def test_a_connection_that_was_lost_says_nothing_of_certificates() -> None:
    assert "connection was lost" in failure_words("UNAVAILABLE", "Socket closed", SHOWN)


def test_what_a_node_says_itself_is_said_as_it_is() -> None:
    assert failure_words("PERMISSION_DENIED", "Status needs the role status", SHOWN) == "Status needs the role status"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, ca: Authority) -> Iterator[Node]:
    db = tmp_path_factory.mktemp("node") / "app.db"
    create_database(db)
    with primary(db, *ca.flags("origin")) as node:
        yield node


def status_words(address: str, tls: Tls) -> str:
    """What `walcast status` says; in this process, which costs less."""
    with pytest.raises((Unavailable, ConfigError)) as caught:
        primary_status(Address.parse(address), tls)
    return str(caught.value)


def test_walcast_status_says_why_in_plain_words(node: Node, ca: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    mine = ca.files("ann", CLIENT)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        said = {
            "nobody listens there": status_words(nobody, Tls(ca.ca, *mine)),
            "may want TLS": status_words(node.address, Tls()),
            "may want a certificate": status_words(node.address, Tls(ca.ca)),
            "does not accept the certificate": status_words(node.address, Tls(ca.ca, *other.files("eve", CLIENT))),
            "not trusted here": status_words(node.address, Tls(other.ca, *mine)),
        }
    for told, words in said.items():
        assert told in words, words
        assert not [raw for raw in RAW if raw in words], words
        assert words.startswith("127.0.0.1:")
