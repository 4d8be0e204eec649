"""What a peer may call a database, a node and an address."""

from __future__ import annotations

import pytest

from walcast.errors import ConfigError, ProtocolViolation
from walcast.identifiers import IDENTIFIER_MAX_CHARS, check_identifier, printable
from walcast.wire import Address


@pytest.mark.parametrize("text", ["app", "tenants/42", "edge eu-1", "größe", "x" * IDENTIFIER_MAX_CHARS, "../../x"])
def test_an_identifier_is_any_short_printable_text(text: str) -> None:
    assert check_identifier("database name", text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * (IDENTIFIER_MAX_CHARS + 1), "x" * 1_000_000, "a\nb", "a\0", "\x1b[2J", "a\u202eb", "a\u2028b"]
)
def test_what_is_empty_long_or_not_printable_is_no_identifier(text: str) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        check_identifier("database name", text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_an_optional_identifier_may_be_empty_and_nothing_else() -> None:
    assert check_identifier("address", "", optional=True) == ""
    with pytest.raises(ProtocolViolation):
        check_identifier("address", "\r\n", optional=True)


@pytest.mark.parametrize("text", ["fine", "a\r\nERROR forged line", "\x1b]0;title\x07", "x" * 5_000_000, "\U000e0001"])
def test_details_for_people_become_one_short_printable_line(text: str) -> None:
    line = printable(text)
    assert line.isprintable()
    assert len(line) < 12_000


@pytest.mark.parametrize("text", ["x:²", "x:" + "9" * 5000, "x:-1", "x: 1", "x:65536", ":1", "x", "x:1\n"])
def test_a_port_is_at_most_five_digits(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(text)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]"])
def test_loopback_is_what_stays_on_this_machine(host: str) -> None:
    assert Address.parse(f"{host}:1").is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "127.example", "localhost.example.com", "10.0.0.1", "[::2]"])
def test_a_name_that_begins_like_a_loopback_address_is_somebody_elses(host: str) -> None:
    assert not Address.parse(f"{host}:1").is_loopback


@pytest.mark.parametrize("host", ["unix:/x", "[unix:/etc/passwd]", "/etc/passwd", "a b", "a\n", "é", "a%0d", "x" * 254])
def test_what_is_no_host_is_no_address(host: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(f"{host}:1")


@pytest.mark.parametrize(
    "text", ["db_1.internal:7420", "[fe80::1%eth0]:7420", "0.0.0.0:0", "[::]:7420", "Edge-1:65535"]
)
def test_hosts_by_name_and_by_address_are_addresses(text: str) -> None:
    assert str(Address.parse(text)) == text
