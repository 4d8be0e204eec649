"""Where the app answers: what `--app-url` takes, and that it goes to whoever follows, also after a failover."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.nodes import poll
from support.replica_set import replica_set

from walcast.appurl import check_app_url
from walcast.errors import ConfigError
from walcast.statusfile import Status, read_status


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
    ],
)
def test_what_is_no_place_of_an_app_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not where an app answers"):
        check_app_url(text)


def test_four_long_texts_fit_into_the_status_file() -> None:
    long = "ü" * 200
    status = Status.decode(Status(primary=long, name=long, follower_id=long, app_url=long).encode())
    assert status is not None
    assert status.app_url == "ü" * 115


def test_followers_know_where_the_primarys_app_is_before_and_after_a_failover(tmp_path: Path) -> None:
    urls = {id: f"http://127.0.0.1:1/{id}" for id in "abc"}
    with replica_set(tmp_path, lease_s=1.0, flags={id: ["--app-url", url] for id, url in urls.items()}) as it:
        nodes = it.nodes.values()
        assert poll(lambda: all(read_status(node.db).app_url == urls["a"] for node in nodes))
        it.node("a").kill()
        new = it.wait_primary(other_than="a")
        others = [it.node(id) for id in "bc"]
        assert poll(lambda: all(read_status(node.db).app_url == urls[new.id] for node in others))
