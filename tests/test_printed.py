"""What peers call themselves is text in a log and on a terminal: no line of its own, no control sequence, no markup."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from rich.console import Console
from support.logfmt import parse_logfmt

from walcast_node.commands import printing
from walcast_node.commands.options import fail
from walcast_node.commands.status_table import table
from walcast_node.process.logs import VALUE_MAX_CHARS, Human, Json

LINE_ENDS = ["\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"]
OTHERS = ["\x1b[2J", "\x07", "\x00", "\x7f", "\x9b31m", "\u202e", "\u2066", "\u200f", "\ufeff"]
FORGED = "x{}09:00:00.000 warning deposed: this node follows now primary=6.6.6.6"


def record(event: str, **facts: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "walcast", "levelname": "INFO", "levelno": logging.INFO, "msg": event})
    vars(made).update(facts)
    return made


@pytest.mark.parametrize("formatter", [Human(), Json()], ids=["text", "json"])
@pytest.mark.parametrize("character", LINE_ENDS + OTHERS, ids=ascii)
def test_no_value_in_a_log_line_ends_it_or_moves_a_cursor(formatter: logging.Formatter, character: str) -> None:
    text = FORGED.format(character)
    for line in (record("follower connected", follower=text), record(text), record("cannot", error=OSError(text))):
        said = formatter.format(line)
        assert said.isprintable()
        assert "6.6.6.6" in said  # nothing is hidden either


def test_a_traceback_is_a_fact_of_its_line() -> None:
    try:
        raise RuntimeError(FORGED.format("\n"))
    except RuntimeError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    line = Human().format(failed)
    assert line.isprintable()
    assert "6.6.6.6" in parse_logfmt(line)["traceback"]
    assert "6.6.6.6" in json.loads(Json().format(failed))["traceback"]


@pytest.mark.parametrize("formatter", [Human(), Json()], ids=["text", "json"])
def test_no_value_fills_the_log(formatter: logging.Formatter) -> None:
    said = formatter.format(record("follower connected", follower="A" * 7_000_000))
    assert len(said) < VALUE_MAX_CHARS + 200


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x1b]0;owned\x07", "[/]", "[link=http://6.6.6.6]x[/link]", "\u202e", "A" * 10_000]
)
def test_a_status_table_shows_names_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    lag = {"transactions": 0, "bytes": None, "ms": 0.0}
    troubles = [{"kind": "other", "text": text, "remedy": text}]
    follower = {"id": text, "state": text, "lag_txids": 0, "lag_ms": 0.0, "applied_txid": 1, "durable_txid": 1}
    database = {
        "name": text, "role": text, "state": text, "troubles": troubles, "wal_bytes": 0, "txid": 1,
        "archive": {"error": text, "txid": 1, "lag": lag}, "followers": [follower],
    }  # fmt: skip
    tls = {"identity": text, "not_after": "2027"}
    replica = dict.fromkeys(("role", "state", "position", "primary", "wal_bytes", "id"), text)
    for facts in (
        {"role": text, "term": 1, "databases": [database], "tls": tls},
        replica | {"path": text, "troubles": troubles, "discarded": [text], "tls": tls},
    ):
        Console(width=400).print(table(facts))
        shown = capsys.readouterr().out
        assert all(line.isprintable() for line in shown.split("\n"))
        if len(text) < 100:
            assert ascii(text)[1:-1].replace("'", "") in shown.replace("'", "")


@pytest.mark.parametrize("character", LINE_ENDS[1:] + OTHERS, ids=ascii)
def test_what_a_command_prints_moves_no_cursor(character: str, capsys: pytest.CaptureFixture[str]) -> None:
    printing.say(f"problem: {FORGED.format(character)}\nsecond")
    first, second, end = capsys.readouterr().out.split("\n")
    assert first.isprintable()
    assert (second, end) == ("second", "")
    with pytest.raises(SystemExit):
        fail(FORGED.format(character))
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


def test_a_status_table_tells_the_trouble_of_each_database(capsys: pytest.CaptureFixture[str]) -> None:
    bare = {"role": "primary", "state": "fenced", "archive": None, "wal_bytes": 0, "txid": 1, "followers": []}
    databases = [
        bare | {"name": name, "troubles": [{"text": f"{name} is fenced", "remedy": "promote"}]}
        for name in ("app", "other")
    ]
    Console(width=120).print(table({"role": "primary", "term": 1, "databases": databases}))
    shown = capsys.readouterr().out
    assert "app: app is fenced" in shown
    assert "other: other is fenced" in shown
