"""What an S3 server answers is not believed: listings without end, bodies that are too long, lines that are none."""

from __future__ import annotations

from contextlib import suppress
from itertools import count

import pytest
from support.s3_answers import Answer, Request, answering, s3_error

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.store import S3Spec, s3, s3_bounded
from walcast.store.base import ListingTooLong
from walcast.store.regular import NotAnObject
from walcast.store.s3 import S3Store
from walcast.store.s3_retry import Bounds

TIME = "2026-01-31T12:00:00.000Z"


def opened(endpoint: str) -> S3Store:
    spec = S3Spec(
        bucket="archive", prefix="db", endpoint=endpoint, path_style=True, access_key_id="a", secret_access_key="b"
    )
    return S3Store(spec, Bounds(attempts=2, backoff_s=0.01, read_s=0.5))


def line(key: str, size: str = "10", time: str = TIME) -> str:
    return f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{time}</LastModified></Contents>"


def page(*lines: str, token: str | None = None) -> Answer:
    more = "false" if token is None else f"true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    truncated = f"<IsTruncated>{more}" + ("" if token else "</IsTruncated>")
    inside = f"<Name>archive</Name><KeyCount>{len(lines)}</KeyCount>{truncated}{''.join(lines)}"
    return Answer(body=f"<ListBucketResult>{inside}</ListBucketResult>".encode())


@pytest.mark.parametrize("keys", [0, 5])
def test_a_listing_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, keys: int) -> None:
    monkeypatch.setattr(s3, "LISTED_MOST", 50)
    monkeypatch.setattr(s3, "_PAGES_MOST", 20)
    numbers = count()

    def answer(_: Request) -> Answer:
        number = next(numbers)
        return page(*(line(f"db/0000/{number}-{i}.ltx") for i in range(keys)), token=f"t{number}")

    with answering(answer) as (endpoint, requests), opened(endpoint) as store:
        with pytest.raises(ListingTooLong):
            list(store.list("0000/"))
        assert len(requests) <= 22


def test_an_answer_that_is_too_long_is_not_taken_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_bounded, "ANSWER_MOST_BYTES", 1 << 20)
    for status in (200, 404):
        with (
            answering(lambda _, status=status: Answer(status, b"<a>" + bytes(4 << 20))) as (endpoint, _),
            opened(endpoint) as store,
        ):
            with pytest.raises(Unavailable):
                list(store.list())
            if status == 404:
                with pytest.raises(Unavailable):
                    store.get("0000/x")


def test_lines_that_were_not_asked_for_or_name_no_object_are_ignored() -> None:
    lines = (
        line("db/0000/a.ltx"),
        line("db/0001/b.ltx"),
        line("other/0000/c.ltx"),
        line("db/0000/\ufffd\u202ed.ltx"),
        line("db/0000/e&#10;f.ltx"),
        line("db/0000/g.ltx", size="-5"),
    )
    with answering(lambda _: page(*lines)) as (endpoint, _), opened(endpoint) as store:
        assert [found.key for found in store.list("0000/")] == ["0000/a.ltx"]


@pytest.mark.parametrize(
    "bad",
    [
        line("db/0000/a.ltx", size="much"),
        line("db/0000/a.ltx", time="yesterday"),
        line("db/0000/a.ltx", time="99999-01-01T00:00:00Z"),
        "<Contents><Key>db/0000/a.ltx</Key></Contents>",
    ],
)
def test_a_listing_that_makes_no_sense_is_one_of_our_errors(bad: str) -> None:
    with answering(lambda _: page(bad)) as (endpoint, _), opened(endpoint) as store, pytest.raises(WalcastError):
        list(store.list("0000/"))


def test_no_more_of_a_body_is_taken_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "WHOLE_MOST_BYTES", 1000)
    with (
        answering(lambda _: Answer(200, bytes(1 << 20), {"ETag": '"e"'})) as (endpoint, _),
        opened(endpoint) as store,
    ):
        assert store.get("0000/x", 0, 100) == bytes(100)
        assert store.get("0000/x", 50, 100) == bytes(100)
        with pytest.raises(NotAnObject):
            store.get("0000/x")
        with pytest.raises(ConfigError):
            store.read("walcast-lease")


@pytest.mark.parametrize("length", ["1000000000000", "5"])
def test_a_content_length_that_lies_costs_an_error_or_nothing(length: str) -> None:
    numbers = count()

    def answer(_: Request) -> Answer:
        if next(numbers) > 20:
            return s3_error(404, "NoSuchKey")
        return Answer(200, bytes(100), {"ETag": '"e"', "Content-Length": length, "Connection": "close"})

    with answering(answer) as (endpoint, requests), opened(endpoint) as store:
        with suppress(Unavailable):
            assert len(store.get("0000/x", 0, 1 << 40)) <= 100
        assert len(requests) <= 3
