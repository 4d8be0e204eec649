"""Requests to S3 are sent again when that may help, not too soon, not too often, and not for ever."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import pytest
from support.s3 import S3Server, counted, counted_s3, moto_s3
from support.s3_answers import HANG_UP, Answer, Request, answering, friendly, s3_error

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.store import ObjectExists
from walcast.store.s3 import S3Store
from walcast.store.s3_retry import Bounds, pause_s, retry_after_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUICK = Bounds(connect_s=1, read_s=1, attempts=4, backoff_s=0.02, retry_after_s=0.2)


@contextmanager
def served(answer: Callable[[Request], Answer], bounds: Bounds = QUICK) -> Iterator[tuple[S3Store, list[Request]]]:
    with answering(answer) as (endpoint, requests), S3Store(S3Server(endpoint).spec(), bounds) as store:
        yield store, requests


def first(count: int, bad: Answer) -> Callable[[Request], Answer]:
    """That answer to so many requests, then friendly ones."""
    left = iter(range(count))
    return lambda request: bad if next(left, None) is not None else friendly(request)


# The decision


def test_pauses_grow_up_to_a_ceiling_and_are_random_below(seed: int) -> None:
    bounds = Bounds(attempts=100, backoff_s=8)
    assert [pause_s(attempt, bounds, 1.0) for attempt in (1, 2, 3, 8, 9, 99)] == [0.05, 0.1, 0.2, 6.4, 8, 8]
    slow = [pause_s(attempt, bounds, 1.0, code="SlowDown", status=503) for attempt in (1, 2, 3, 4, 99)]
    assert slow == [1, 2, 4, 8, 8]
    assert pause_s(5, bounds, 0.0, status=503) == 0
    chance = random.Random(seed)
    for _ in range(1000):
        attempt, jitter, asked = chance.randrange(1, 99), chance.random(), chance.uniform(0, 1000)
        pause = pause_s(attempt, bounds, jitter, status=503, retry_after=asked)
        assert pause is not None
        assert min(asked, bounds.retry_after_s) <= pause <= bounds.retry_after_s + bounds.backoff_s


@pytest.mark.parametrize(
    ("code", "status", "again"),
    [
        ("", 0, True),
        ("SlowDown", 503, True),
        ("503", 503, True),
        ("InternalError", 500, True),
        ("502", 502, True),
        ("504", 504, True),
        ("TooManyRequests", 429, True),
        ("429", 429, True),
        ("RequestCanceled", 408, True),
        ("RequestTimeout", 400, True),
        ("OperationAborted", 409, True),
        ("ConditionalRequestConflict", 409, True),
        ("NotImplemented", 501, False),
        ("PreconditionFailed", 412, False),
        ("AccessDenied", 403, False),
        ("NoSuchKey", 404, False),
        ("InvalidRequest", 400, False),
        ("BucketAlreadyExists", 409, False),
    ],
)
def test_what_may_pass_is_tried_again(code: str, status: int, again: bool) -> None:
    assert (pause_s(1, Bounds(), 0.5, code=code, status=status) is not None) == again
    assert pause_s(Bounds().attempts, Bounds(), 0.5, code=code, status=status) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0),
        ({"x-amz-retry-after": "1500"}, 1.5),
        ({"x-amz-retry-after": "-5"}, 0),
        ({"x-amz-retry-after": "soon"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-7"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, NOW) == expected


# The requests


@pytest.mark.parametrize(
    "bad",
    [
        s3_error(503, "SlowDown"),
        Answer(503),
        Answer(429, b"<html>busy</html>"),
        s3_error(408, "RequestCanceled"),
        s3_error(500, "InternalError"),
        HANG_UP,
    ],
    ids=["SlowDown", "503", "429", "408", "500", "closed"],
)
def test_a_request_is_sent_whole_until_it_succeeds_or_the_attempts_are_used_up(bad: Answer) -> None:
    with served(first(3, bad)) as (store, requests):
        store.put("a", b"body", timestamp_ms=0)
        assert [(request.method, request.body) for request in requests] == [("PUT", b"body")] * 4
    with served(first(4, bad)) as (store, requests), pytest.raises(Unavailable) as caught:
        store.put("a", b"body", timestamp_ms=0)
    assert len(requests) == 4
    assert type(caught.value) is Unavailable


@pytest.mark.parametrize("status", [400, 403, 404, 501])
def test_what_will_not_pass_is_said_at_once(status: int) -> None:
    with served(lambda _: s3_error(status, "Whatever")) as (store, requests), pytest.raises(ConfigError):
        store.check()
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("headers", "at_least_s"),
    [({"Retry-After": "20"}, 0.2), ({"x-amz-retry-after": "100"}, 0.1), ({"Retry-After": "junk"}, 0)],
)
def test_a_server_that_asks_to_wait_is_waited_for_within_the_bound(headers: dict[str, str], at_least_s: float) -> None:
    with served(first(1, s3_error(503, "SlowDown", headers=headers))) as (store, requests):
        begun = time.monotonic()
        store.put("a", b"", timestamp_ms=0)
        assert at_least_s <= time.monotonic() - begun < at_least_s + 1
    assert len(requests) == 2


def test_an_error_inside_a_good_answer_is_tried_again() -> None:
    """S3 answers a long completion with 200 at first, and says later how it went."""
    inside = Answer(200, b"<Error><Code>InternalError</Code><Message>sorry</Message></Error>")
    done = first(1, inside)

    def answer(request: Request) -> Answer:
        return done(request) if request.operation == "COMPLETE" else friendly(request)

    with served(answer) as (store, requests):
        store.put("a", io.BytesIO(bytes(9 << 20)), timestamp_ms=0)
    assert [request.operation for request in requests].count("COMPLETE") == 2


def test_a_part_that_never_arrives_ends_the_upload_and_is_paid_for_no_longer() -> None:
    def answer(request: Request) -> Answer:
        return s3_error(503, "SlowDown") if request.query.get("partNumber") == ["2"] else friendly(request)

    with served(answer) as (store, requests), pytest.raises(Unavailable):
        store.put("a", io.BytesIO(bytes(30 << 20)), timestamp_ms=0)
    assert requests[-1].operation == "ABORT"
    assert requests[-1].query["uploadId"] == ["up"]


def test_a_server_that_never_answers_is_given_up_within_the_bounds() -> None:
    silent = threading.Event()

    def answer(request: Request) -> Answer:
        silent.wait(5)
        return HANG_UP

    bounds = Bounds(connect_s=0.1, read_s=0.1, attempts=3, backoff_s=0.02)
    with served(answer, bounds) as (store, requests):
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="no answer"):
            store.get("a")
        assert time.monotonic() - begun < 1
        assert len(requests) == 3
        silent.set()


def test_closing_the_store_ends_a_pause() -> None:
    slow = s3_error(503, "SlowDown", headers={"Retry-After": "60"})
    came = threading.Event()

    def answer(request: Request) -> Answer:
        came.set()
        return slow

    with served(answer, Bounds(attempts=10, retry_after_s=60)) as (store, requests):
        said: list[WalcastError] = []

        def put() -> None:
            try:
                store.put("a", b"", timestamp_ms=0)
            except WalcastError as error:
                said.append(error)

        writing = threading.Thread(target=put)
        writing.start()
        assert came.wait(5)
        store.close()
        writing.join(5)
        assert not writing.is_alive()
    assert len(requests) == 1
    assert isinstance(said[0], Unavailable)


@pytest.mark.parametrize("kind", ["503", "close", "lose"])
def test_an_outage_is_outlived_by_the_real_server(tmp_path: Path, kind: str) -> None:
    with counted_s3(tmp_path) as server, S3Store(server.spec(), QUICK) as store:
        store.put("a", b"before", timestamp_ms=0)
        server.traffic.start_outage(kind, times=3)
        store.put("a", b"after", timestamp_ms=0)
        assert server.traffic.refused == {"PUT": 3}
        assert store.get("a") == b"after"
        assert [found.key for found in store.list()] == ["a"]
        assert server.traffic.requests == {"PUT": 5, "GET": 1, "LIST": 1}


# A lost answer


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.mark.parametrize("size", [5, 9 << 20])
def test_an_object_written_by_an_attempt_whose_answer_was_lost_is_our_own(moto: S3Server, size: int) -> None:
    body = random.Random(size).randbytes(size)
    with counted(moto) as server, S3Store(server.spec(f"lost-{size}"), QUICK) as store:
        assert store.honours_preconditions()
        store.put("taken", body[:-1] + b"!", timestamp_ms=0)
        lose = partial(server.traffic.outage, "lose", "PUT" if size == 5 else "COMPLETE", times=1)
        with lose():
            store.put("free", io.BytesIO(body), timestamp_ms=0, if_absent=True)
        assert store.get("free") == body
        with lose(), pytest.raises(ObjectExists):
            store.put("taken", io.BytesIO(body), timestamp_ms=0, if_absent=True)
        assert store.get("taken") == body[:-1] + b"!"
        assert sum(server.traffic.refused.values()) == 2


def test_a_probe_whose_answer_was_lost_does_not_mislead(moto: S3Server) -> None:
    with counted(moto) as server:
        for times in (1, 2, 3):
            with (
                S3Store(server.spec("probe"), QUICK) as store,
                server.traffic.outage("lose", "PUT", times=times),
            ):
                assert store.honours_preconditions()
                assert list(store.list()) == []
