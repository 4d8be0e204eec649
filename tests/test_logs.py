"""The log: text is logfmt that a parser takes, JSON is JSON in every line; how both begin and end."""

from __future__ import annotations

import json
import logging
import math
import re
import signal
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import nodes
from support.logfmt import parse_logfmt
from support.nodes import walcast
from support.replica_set import create_database

from walcast.rpc import replication_pb2 as pb
from walcast_node.process.health import Failure, FailureKind
from walcast_node.process.log_summary import UNWELL, WELL, summary
from walcast_node.process.logs import Human, Json

VALUES = [
    "",
    " ",
    "a b",
    'say "hi"',
    "a=b",
    "back\\slash",
    "C:\\x",
    "line\nend",
    "tab\t",
    "é",
    "\x1b[2J",
    "😀 x",
    "\ud800",
    "-",
]


def record(event: str, /, **facts: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "walcast", "levelname": "INFO", "levelno": logging.INFO, "msg": event})
    vars(made).update(facts)
    return made


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_a_parser_of_logfmt_takes_what_was_said(value: str) -> None:
    facts = parse_logfmt(Human().format(record(value, database=value, other="x")))
    assert (facts["msg"], facts["database"], facts["other"]) == (value, value, "x")


def test_a_text_line_has_date_time_and_zone() -> None:
    facts = parse_logfmt(Human().format(record("x")))
    assert datetime.fromisoformat(facts["time"]).utcoffset() is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", facts["time"])


def test_what_is_true_and_what_is_not_there_are_words_of_logfmt() -> None:
    facts = parse_logfmt(Human().format(record("x", yes=True, none=None)))
    assert (facts["yes"], facts["none"]) == ("true", "")


@pytest.mark.parametrize("name", ["time", "level", "event", "logger", "msg"])
def test_no_fact_takes_the_place_of_what_every_line_has(name: str) -> None:
    line = record("x", **{name: "mine"}) if name != "msg" else record("x")
    assert json.loads(Json().format(line))["event"] == "x"
    assert parse_logfmt(Human().format(line))["msg"] == "x"


@pytest.mark.parametrize(
    "value",
    [math.inf, math.nan, {1, 2}, {(1, 2): b"x"}, object(), Path("x")],
    ids=["inf", "nan", "set", "dict", "object", "path"],
)
def test_every_value_is_json(value: object) -> None:
    line = Json().format(record("x", value=value, listed=[value]))
    assert json.loads(line, parse_constant=pytest.fail)["event"] == "x"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_node_says_what_it_is_first_and_that_it_ended_last(tmp_path: Path, log_format: str) -> None:
    """Also what ends it is a line of the log, where that is JSON."""
    parse = json.loads if log_format == "json" else parse_logfmt
    key = "event" if log_format == "json" else "msg"
    missing = walcast("primary", tmp_path / "none.db", "--log-format", log_format)
    lines = [parse(line) for line in missing.stderr.splitlines() if not line.startswith("error: ")]
    assert missing.returncode == 1
    assert (lines[0][key], lines[0]["databases"]) == ("starting", str(tmp_path / "none.db"))
    assert lines[0]["version"]
    ended = lines[-2] if log_format == "json" else lines[-1]
    assert (ended[key], ended["outcome"]) == ("ended", "failed")
    assert missing.stderr.splitlines()[-1].startswith("error: ") == (log_format == "text")


def test_a_planned_switchover_logs_no_warning(tmp_path: Path) -> None:
    """On neither side, nor on a follower that is told of it, with an archive that is written to all the time."""
    create_database(tmp_path / "a.db")
    flags = str(tmp_path / "archive"), "--id", "a", "--log-summary", "1s"
    with (
        nodes.primary(tmp_path / "a.db", *flags) as primary,
        nodes.follower(tmp_path / "b" / "a.db", primary.address, "--id", "b") as follower,
        nodes.follower(tmp_path / "c" / "a.db", primary.address, "--id", "c") as bystander,
    ):
        follower.wait_event("streaming")
        bystander.wait_event("streaming")
        with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as app:
            app.execute("create table more(x)")
            done = walcast("switchover", primary.address, "--to", "b")
            assert done.returncode == 0, done.stderr
        primary.wait_event("streaming")
        bystander.wait_event("streaming", 2)
        primary.wait_event("all well")
        said = primary.events() + follower.events() + bystander.events()
        assert [event for event in said if event["level"] in ("warning", "error")] == []
        assert primary.stop() == 0
        assert primary.events()[-1]["outcome"] == "stopped"
        assert all(line.startswith("{") for line in primary.err.read_text().splitlines())
        assert primary.events("stopping")[0]["signal"] == signal.SIGTERM.name


def test_the_summary_says_what_is_wrong() -> None:
    database = pb.DatabaseStatus(name="app", role="primary", position=pb.Position(txid=12, checksum=7))
    reply = pb.StatusReply(databases=[database])
    level, event, facts = summary(reply, [])
    assert (level, event, facts["positions"]) == (logging.INFO, WELL, "app 000000000000000c/0000000000000007")
    level, event, facts = summary(reply, [Failure(FailureKind.STALE, "far behind", "app")])
    assert (level, event, facts["first"]) == (logging.WARNING, UNWELL, "app: far behind")
    database.archive.error = "no route"
    assert summary(pb.StatusReply(databases=[database]), [])[1] == UNWELL


def test_a_summary_counts_a_database_that_is_not_served_once() -> None:
    not_served = pb.DatabaseStatus(name="app", trouble="no such file", trouble_kind=FailureKind.NOT_SERVED)
    not_served.archive.error = "not served: no such file"
    reply = pb.StatusReply(databases=[not_served, pb.DatabaseStatus(name="b", role="primary")])
    facts = summary(reply, [Failure(FailureKind.NOT_SERVED, "no such file", "app")])[2]
    assert (facts["wrong"], facts["roles"]) == (1, "1 not served, 1 primary")


def test_config_check_fails_where_the_run_would(tmp_path: Path) -> None:
    create_database(tmp_path / "app.db")
    for text in (
        f"dbs:\n  - path: {tmp_path}/none.db\n",
        "dbs: []\n",
        f"tls: {{cert: {tmp_path}/no.pem, key: {tmp_path}/no.key}}\ndbs: [{{path: {tmp_path}/app.db}}]\n",
    ):
        (tmp_path / "walcast.yml").write_text(text)
        for command in (["config", "check"], ["primary", "--config"]):
            done = walcast(*command, tmp_path / "walcast.yml")
            assert done.returncode in (1, 2), (text, command, done)
