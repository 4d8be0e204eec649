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
