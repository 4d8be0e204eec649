"""What an S3 server answers is not believed: listings without end, bodies that are too long, lines that are none."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

import pytest
from support.s3_answers import Answer, Request, answering, s3_error

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.store import S3Spec, s3, s3_bounded
from walcast.store.base import ListingTooLong
from walcast.store.regular import NotAnObject
from walcast.store.s3 import S3Store
from walcast.store.s3_paced import LEAST_BYTES, PacedReader
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


HEAD = b'HTTP/1.1 206 Partial Content\r\nETag: "e"\r\nContent-Length: 1000000\r\n\r\n'


@contextmanager
def dripping(at_once: bytes) -> Iterator[str]:
    """A server that says this, and then a byte now and then, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                connection.recv(1 << 16)
                connection.sendall(at_once)
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.05)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("at_once", [HEAD, b"HTTP/1.1 200 OK\r\n", b""], ids=["body", "headers", "nothing"])
def test_an_answer_that_drips_for_ever_is_given_up(at_once: bytes) -> None:
    """Each byte comes in time, and the object would take days."""
    with dripping(at_once) as endpoint, opened(endpoint) as store:
        store._bounds = Bounds(attempts=2, backoff_s=0.01, read_s=0.2)
        for read in (
            lambda: store.get("0000/x", 0, 1_000_000),
            lambda: list(store.list()),
            lambda: store.read("lease"),
        ):
            began_s = time.monotonic()
            with pytest.raises(WalcastError):
                read()
            assert time.monotonic() - began_s < 5.0


def test_who_takes_long_to_use_what_came_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("walcast.store.s3_paced.time.monotonic", lambda: now_s[0])
    paced = io.BufferedReader(PacedReader(io.BytesIO(bytes(4 * LEAST_BYTES)), 60.0), 512)
    for _ in range(8):
        assert len(paced.read(LEAST_BYTES // 2)) == LEAST_BYTES // 2
        now_s[0] += 3600.0


@pytest.mark.parametrize("status", [200, 403])
def test_an_answer_that_is_a_deep_or_a_broad_tree_takes_no_memory_to_speak_of(status: int) -> None:
    for body in (b"<ListBucketResult>" + b"<a>" * (3 << 20), b"<ListBucketResult>" + b"<a></a>" * (3 << 19)):
        with (
            answering(lambda _, body=body: Answer(status, body)) as (endpoint, _),
            opened(endpoint) as store,
            pytest.raises(Unavailable),
        ):
            list(store.list())


def test_a_page_of_the_longest_keys_there_are_is_read() -> None:
    keys = [f"db/0000/{number:04}" + "%C3%BC" * 500 for number in range(1000)]
    with answering(lambda _: page(*map(line, keys))) as (endpoint, _), opened(endpoint) as store:
        assert len(list(store.list("0000/"))) == 1000
