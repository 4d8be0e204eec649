"""Where the app answers: what `--app-url` takes, which addresses of others are used, and that it goes to whoever
follows, also after a failover."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import httpcore
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.nodes import follower, poll, primary, walcast
from support.replica_set import replica_set

from walcast.appurl import AppUrlPolicy, check_app_url, parse_app_url
from walcast.errors import ConfigError
from walcast.position import Position
from walcast.statusfile import TEXT_BYTES, State, Status, read_last_status, read_status
from walcast_follower.status_reporter import Showing
from walcast_node.cli import main


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000"),
        ("https://app.example.com", "https://app.example.com"),
        ("http://[::1]:8000/shop/", "http://[::1]:8000/shop"),
    ],
)
def test_an_app_answers_at_a_host_and_below_a_path(text: str, expected: str) -> None:
    assert check_app_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1:8000",
        "ftp://h",
        "http://",
        "http://h:port",
        "http://h:99999",
        "http://user:secret@h",
        "http://h/?a=b",
        "http://h/#there",
        "http://h/a b",
        "http://h\r\nx: y",
        "http://h\\@other",
        "http://ünicode",
        "http://" + "h" * 300,
        "http://h/" + "a" * 230,
        "http://h:0",
        "http://h/shop/../admin",
        "http://h/shop/%2e%2E/admin",
        "http://h/shop%2f..%2fadmin",
        "http://h\x7f",
        "http://h.",
        "http://-h",
        "http://2852039166",
        "http://0xa9fe.43518",
        "http://127.1",
        "http://0177.0.0.1",
        "http://[fe80::1%25eth0]",
        "http://[h]",
    ],
)
def test_what_is_no_place_of_an_app_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not where an app answers"):
        check_app_url(text)


def test_a_mistyped_url_does_not_show_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        check_app_url("http://me:hunter2@h:8000")
    assert "hunter2" not in str(caught.value)


# Which are used

REFUSED = [
    "http://10.0.0.1:8000",
    "http://app.example.com",
    "http://[::ffff:10.0.0.1]",
    "http://localhost.example.com",
    "https://169.254.169.254",
    "http://169.254.169.254/latest",
    "https://[fe80::1]",
    "https://[::ffff:169.254.169.254]",
    "https://[64:ff9b::a9fe:a9fe]",
    "https://[2002:a9fe:a9fe::1]",
    "https://[fd00:ec2::254]",
    "https://100.100.100.200",
    "https://0.0.0.0",
    "https://[::]",
    "https://224.0.0.1",
    "https://255.255.255.255",
    "file:///etc/passwd",
    "http://x:80/\r\nEvil: 1",
    "https://" + "a" * 1_000_000,
    "",
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_may_not_be_used_is_refused_with_a_reason(url: str) -> None:
    why = AppUrlPolicy.of().refusal(url)
    assert why
    assert len(why) < 500
    assert why.isprintable()


@pytest.mark.parametrize(
    "url",
    ["https://app.example.com", "https://10.0.0.1/x", "http://127.0.0.1:8000", "http://localhost", "http://[::1]"],
)
def test_https_and_this_machine_need_no_configuration(url: str) -> None:
    assert AppUrlPolicy.of().refusal(url) == ""


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "http://app"])
def test_plain_http_beyond_this_machine_must_be_asked_for(url: str) -> None:
    assert AppUrlPolicy.of(insecure=True).refusal(url) == ""
    assert AppUrlPolicy.of(insecure=True).refusal("http://169.254.169.254")


ALLOWED = [
    ("https://app.example.com", "https://app.example.com", True),
    ("https://app.example.com", "https://app.example.com/shop", True),
    ("https://app.example.com", "https://APP.example.com:443", True),
    ("https://app.example.com", "https://app.example.com:8443", False),
    ("https://app.example.com", "https://app.example.com.evil.example", False),
    ("https://app.example.com", "https://evil.example", False),
    ("https://app.example.com/shop", "https://app.example.com/shop", True),
    ("https://app.example.com/shop", "https://app.example.com/shop/a", True),
    ("https://app.example.com/shop", "https://app.example.com/shopping", False),
    ("https://app.example.com/shop", "https://app.example.com", False),
    ("https://*.example.com", "https://a.b.example.com", True),
    ("https://*.example.com", "https://example.com", False),
    ("https://*.example.com", "https://evilexample.com", False),
    ("*.example.com", "https://a.example.com:8443/x", True),
    ("app.example.com", "https://app.example.com:8443", True),
    ("127.0.0.1", "http://127.0.0.1:8000", True),
    ("127.0.0.1", "http://127.0.0.2:8000", False),
    ("http://127.0.0.1:8000", "http://127.0.0.1:8001", False),
    ("https://[2001:DB8::1]", "https://[2001:db8::1]", True),
]


@pytest.mark.parametrize(("allowed", "url", "used"), ALLOWED)
def test_a_list_restricts_where_the_app_may_be(allowed: str, url: str, used: bool) -> None:
    for policy in (AppUrlPolicy.of([allowed]), AppUrlPolicy.of(["https://other.example", allowed])):
        assert (policy.refusal(url) == "") == used


@pytest.mark.parametrize(
    "entry", ["", "*", "https://*", "a/b", "a:80", "ftp://a", "*.1.2.3.4", "https://a.*.b", "https://u:p@h", "a b", 5]
)
def test_an_entry_that_cannot_be_is_refused(entry: Any) -> None:
    with pytest.raises(ConfigError):
        AppUrlPolicy.of([entry])


def test_a_list_that_allows_nothing_is_refused() -> None:
    for allowed in ([], "https://a", ["http://10.0.0.1"], ["http://*.example.com"]):
        with pytest.raises(ConfigError):
            AppUrlPolicy.of(allowed)


@given(st.text(max_size=60) | st.text("htps:/.[]@%0123456789abcdefx*-_\\ \t", max_size=40).map(lambda t: "http" + t))
def test_anything_may_come_as_a_url(text: str) -> None:
    """What is used is one host, port and path for whoever reads it."""
    if AppUrlPolicy.of().refusal(text) == "":
        request = httpcore.URL(text)
        assert request.host.decode().lower() == parse_app_url(text).host
        assert text.isprintable()
        assert "@" not in text.partition("//")[2].partition("/")[0]


# The status file


def test_four_long_texts_fit_into_the_status_file() -> None:
    long, url = "ü" * 200, "https://" + "a." * 100 + "example/" + "b" * 14
    assert len(url) == TEXT_BYTES
    written = Status(primary=long, name=long, follower_id=long, app_url=url, app_url_refused=long)
    status = Status.decode(written.encode())
    assert status is not None
    assert (status.name, status.app_url) == ("ü" * 115, url)
    assert status.app_url_refused.startswith("üüü")


@pytest.mark.parametrize("url", [url for url in REFUSED if url.startswith(("file", "http://x"))])
def test_a_status_file_that_lies_names_no_url(url: str) -> None:
    good = "https://" + "h" * (len(url) - 8)
    body = Status(app_url=good).encode()[4:].replace(good.encode(), url.encode())
    status = Status.decode(zlib.crc32(body).to_bytes(4, "little") + body)
    assert status is not None
    assert status.app_url == ""


def test_a_url_that_does_not_fit_is_not_cut_to_another_one() -> None:
    status = Status.decode(Status(app_url="https://h/" + "a" * 300).encode())
    assert status is not None
    assert status.app_url == ""


@given(st.integers(88, 1023), st.integers(0, 255), st.integers(8, 0xFFFFFFFF))
def test_a_status_file_that_says_what_no_node_would_is_none(at: int, byte: int, state: int) -> None:
    body = bytearray(Status(State.STREAMING, name="n" * 200, primary="p" * 200).encode()[4:])
    body[at - 4] = byte
    Status.decode(zlib.crc32(body).to_bytes(4, "little") + body)
    body[8:12] = state.to_bytes(4, "little")
    assert Status.decode(zlib.crc32(body).to_bytes(4, "little") + body) is None


# What a primary says


class Client:
    primary, database, follower_id = "127.0.0.1:1", "app", "f"


def showing_of(folder: Path, policy: AppUrlPolicy) -> Showing:
    return Showing(folder, Client(), policy)  # type: ignore[arg-type]


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("url", [url for url in REFUSED if url])
def test_a_follower_does_not_use_a_url_that_may_not_be_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    showing = showing_of(tmp_path, AppUrlPolicy.of())
    for _ in range(3):
        showing.connected("app", url)
        showing.show(State.STREAMING, 1, Position(1, 1), "127.0.0.1:1", primary_txid=1)
    shown = read_last_status(tmp_path)
    assert shown.app_url == ""
    assert shown.app_url_refused
    assert len(warnings(caplog)) == 1
    showing.connected("app", "https://app.example.com")
    showing.show(State.STREAMING, 1, Position(1, 1), "127.0.0.1:1", primary_txid=1)
    shown = read_last_status(tmp_path)
    assert (shown.app_url, shown.app_url_refused) == ("https://app.example.com", "")
    showing.close()


def test_a_primary_elsewhere_cannot_have_requests_sent_to_this_machine(tmp_path: Path) -> None:
    here = "http://127.0.0.1:6379"
    showing = showing_of(tmp_path, AppUrlPolicy.of())
    for nearby, used in ((False, ""), (True, here)):
        showing.connected("app", here, nearby=nearby)
        assert showing.status.app_url == used
    showing.close()
    showing = showing_of(tmp_path, AppUrlPolicy.of([here]))
    showing.connected("app", here, nearby=False)
    assert showing.status.app_url == here, "a tunnel that is named"
    showing.close()


def test_what_the_status_file_said_before_is_judged_anew(tmp_path: Path) -> None:
    for policy, used in (
        (AppUrlPolicy.of(insecure=True), "http://10.0.0.1:8000"),
        (AppUrlPolicy.of(insecure=True), "http://10.0.0.1:8000"),
        (AppUrlPolicy.of(), ""),
    ):
        showing = showing_of(tmp_path, policy)
        if not read_last_status(tmp_path).app_url:
            showing.connected("app", "http://10.0.0.1:8000")
        showing.show(State.DISCONNECTED, 1, Position(1, 1), "")
        assert read_last_status(tmp_path).app_url == used
        showing.close()


@pytest.mark.parametrize("command", [["primary"], ["follower", "--primary", "127.0.0.1:1"]])
@pytest.mark.parametrize(
    "flags",
    [
        ["--app-url", "http://10.0.0.1:8000"],
        ["--app-url", "https://169.254.169.254"],
        ["--allowed-app-url", "http://10.0.0.1:8000"],
        ["--allowed-app-url", "nonsense:x"],
    ],
)
def test_a_node_is_not_started_with_a_url_that_others_would_refuse(
    tmp_path: Path, command: list[str], flags: list[str]
) -> None:
    done = CliRunner().invoke(main, [command[0], str(tmp_path / "a.db"), *command[1:], *flags])
    assert done.exit_code == 1
    assert "app URL" in done.output or "http" in done.output


def test_a_follower_uses_only_what_it_allows_and_status_says_so(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/a"
    (tmp_path / "a").mkdir()
    with closing(sqlite3.connect(tmp_path / "a" / "app.db")) as db:
        db.execute("CREATE TABLE t (a)")
    replica = tmp_path / "b.db"
    with primary(tmp_path / "a" / "app.db", "--app-url", url) as node:
        flags = ["--name", "app", "--allowed-app-url", "https://app.example.com"]
        with follower(replica, node.address, *flags) as edge:
            assert poll(lambda: read_status(replica).app_url_refused)
            assert read_status(replica).app_url == ""
            facts = json.loads(walcast("status", replica, "--json").stdout)
            (shown,) = facts.get("databases", [facts])
            assert (shown["app_url"], shown["app_url_refused"].partition(" ")[0]) == (None, url)
            assert len(edge.events("where the primary's app answers is not used")) == 1
        with follower(replica, node.address, *flags, "--allowed-app-url", "http://127.0.0.1:1"):
            assert poll(lambda: read_status(replica).app_url == url)
            assert read_status(replica).app_url_refused == ""


def test_followers_know_where_the_primarys_app_is_before_and_after_a_failover(tmp_path: Path) -> None:
    urls = {id: f"http://127.0.0.1:1/{id}" for id in "abc"}
    with replica_set(tmp_path, lease_s=1.0, flags={id: ["--app-url", url] for id, url in urls.items()}) as it:
        nodes = it.nodes.values()
        assert poll(lambda: all(read_status(node.db).app_url == urls["a"] for node in nodes))
        it.node("a").kill()
        new = it.wait_primary(other_than="a")
        others = [it.node(id) for id in "bc"]
        assert poll(lambda: all(read_status(node.db).app_url == urls[new.id] for node in others))
