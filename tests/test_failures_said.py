"""What an operator is told when something does not work: one line with the value and what to do, exit code 1 or 2; and
`walcast config check` refuses what the run would."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import click
import pytest
from support.logfmt import parse_logfmt
from support.nodes import primary, walcast
from support.replica_set import create_database
from support.users import STRANGER, STRANGER_GROUP, as_user, folder_for_all, needs_root

from walcast.errors import ConfigError, Unavailable
from walcast.filesystem import check_database_file
from walcast.oserrors import at_path
from walcast.store import open_store
from walcast.wire import Address
from walcast_node.commands.options import Wait
from walcast_node.commands.primary import settings_by
from walcast_node.config.numbers import Number, Seconds, Size
from walcast_node.process.listen_errors import why_not
from walcast_node.process.logs import Human
from walcast_node.process.preflight import problems


def refused(*arguments: object) -> str:
    """The one line that the command ends with."""
    done = walcast(*arguments)
    lines = done.stderr.splitlines()
    assert done.returncode in (1, 2), (arguments, done)
    assert "Traceback" not in done.stderr
    assert lines[-1].lower().startswith("error: "), lines
    return lines[-1]


@pytest.mark.parametrize("target", ["none.db", "127.0.0.1", "http://127.0.0.1:7421", "folder", "zero.db", "garbage.db"])
@pytest.mark.parametrize("command", ["status", "ls", "restore", "verify", "snapshot", "promote", "repair", "wait"])
def test_each_command_says_of_each_wrong_target_what_to_do(tmp_path: Path, command: str, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero.db").touch()
    (tmp_path / "garbage.db").write_bytes(os.urandom(4096))
    more = {"snapshot": [tmp_path / "archive"], "restore": ["-o", tmp_path / "out.db"], "wait": ["0" * 16]}
    if (command, target) in {("ls", "folder"), ("snapshot", "zero.db")}:
        return  # an archive that is empty, and a database that is
    where = target if ":" in target or target[0].isdigit() else str(tmp_path / target)
    line = refused(command, where, *more.get(command, []), *(["--timeout", "0"] if command == "wait" else []))
    assert any(sign in line for sign in (";", " give ", " start ", " check ", " walcast ", "correct")), line
    assert not (tmp_path / "out.db").exists()


@pytest.mark.parametrize("target", [".", "/", ""])
@pytest.mark.parametrize("command", [["primary"], ["follower", "--primary", "127.0.0.1:1"], ["status"], ["repair"]])
def test_a_path_that_ends_in_no_name_is_said_to_be_a_folder(command: list[str], target: str) -> None:
    said = walcast(*command, target).stderr
    assert "unexpected" not in said
    assert said.splitlines()[-1].startswith("error: ")


def test_an_archive_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert walcast("ls", tmp_path / "empty").returncode == 0
    assert str(tmp_path / "none") in refused("ls", tmp_path / "none")
    assert str(tmp_path / "empty") in refused("restore", tmp_path / "empty", "-o", tmp_path / "out.db")


def test_a_directory_that_cannot_be_made_is_not_called_a_missing_object() -> None:
    with open_store("/proc/none") as store, pytest.raises(Unavailable) as caught:
        store.put("walcast-database", b"x", timestamp_ms=0)
    assert type(caught.value) is Unavailable


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Seconds(min=1), "8", 8.0),
        (Seconds(min=1), "1h30m", 5400.0),
        (Size(min=1), "256MiB", 256 << 20),
        (Size(min=1), "1048576", 1 << 20),
        (Number(min=0), "2.5", 2.5),
        (Wait(), "1m", 60.0),
        (Wait(), "0.5", 0.5),
        (Wait(), "forever", math.inf),
    ],
)
def test_flags_take_what_a_configuration_file_takes(kind: click.ParamType[float], text: str, value: float) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Seconds(min=1), "10x"),
        (Seconds(min=1), "0s"),
        (Seconds(min=1), "nan"),
        (Seconds(), "inf"),
        (Number(), "nan"),
        (Wait(), "inf"),
        (Wait(), "-1"),
        (Size(min=1 << 20), "1KB"),
        (Size(), "1 XB"),
        (Size(), "-1"),
    ],
)
def test_a_bad_number_size_or_duration_is_refused(kind: click.ParamType[float], text: str) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)


def test_why_a_port_cannot_be_had_is_asked_of_the_system() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        answers = {
            why_not(Address("127.0.0.1", taken.getsockname()[1])),
            why_not(Address("203.0.113.1", 0)),
            why_not(Address("none.invalid", 0)),
        }
    assert len(answers) == 3


@needs_root
def test_a_file_without_rights_names_the_user_that_has_them() -> None:
    with folder_for_all() as folder:
        create_database(folder / "app.db")
        (folder / "app.db").chmod(0o600)

        def check() -> str:
            try:
                check_database_file(folder / "app.db")
            except ConfigError as error:
                return str(error)
            return ""

        said = as_user(STRANGER, STRANGER_GROUP, check)
    assert f"uid {STRANGER}" in said
    assert "root" in said


def test_an_error_of_a_path_is_one_line_with_a_remedy() -> None:
    for number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENOSPC, errno.EACCES):
        said = at_path(OSError(number, os.strerror(number)), "/none/x")
        assert said.startswith("/none/x: ")
        assert ";" in said
        assert "\n" not in said


@pytest.mark.parametrize(
    "more",
    [
        "exec: /none/app\n",
        'exec: "\'"\n',
        "auto-failover: true\n",
        "http: 0.0.0.0:0\n",
        "listen: 0.0.0.0:0\n",
        "listen: 0.0.0.0:0\ntls: {cert: none.pem, key: none.key}\n",
        "token-file: none\n",
    ],
)
def test_a_check_refuses_what_the_run_refuses(tmp_path: Path, more: str) -> None:
    create_database(tmp_path / "app.db")
    file = tmp_path / "walcast.yml"
    listen = "" if "listen" in more else "listen: 127.0.0.1:0\n"
    file.write_text(f"dbs: [{{path: {tmp_path}/app.db}}]\n{listen}")
    assert list(problems(settings_by(file))) == []
    file.write_text(file.read_text() + more)
    line = refused("config", "check", file)
    assert str(file) in line
    assert refused("primary", "--config", file)
    with closing(sqlite3.connect(tmp_path / "app.db")) as app:  # nothing was changed
        assert app.execute("pragma journal_mode").fetchone()


def test_several_values_of_a_fact_are_words_of_a_text_log() -> None:
    line = logging.makeLogRecord({"msg": "x", "levelname": "INFO", "levelno": logging.INFO})
    vars(line).update(missing=["a b", "c"], followers={"edge-1": 7}, none={}, applied_txid=255)
    facts = parse_logfmt(Human().format(line))
    assert (facts["missing"], facts["followers"], facts["none"]) == ("a b; c", "edge-1: 7", "")
    assert facts["applied_txid"] == "00000000000000ff"  # as flags take it


def test_a_database_that_is_served_is_not_restored_over(tmp_path: Path) -> None:
    create_database(tmp_path / "app.db")
    with primary(tmp_path / "app.db", tmp_path / "archive") as node:
        node.wait_event("archived a snapshot")
        before = (tmp_path / "app.db").stat().st_ino
        assert "stop" in refused("restore", tmp_path / "archive", "-o", tmp_path / "app.db", "--force")
        assert (tmp_path / "app.db").stat().st_ino == before
        skipped = walcast("restore", tmp_path / "archive", "-o", tmp_path / "app.db", "--if-db-not-exists")
        assert skipped.returncode == 0
        assert node.stop() == 0
    assert walcast("restore", tmp_path / "archive", "-o", tmp_path / "app.db", "--force").returncode == 0
