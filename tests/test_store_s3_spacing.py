"""Stores that take one write a second of a key."""

from __future__ import annotations

import pytest
from support.s3_answers import captured

from walcast.store import S3Spec
from walcast.store.s3_spacing import EVERY_S, Spacing, write_interval_s


@pytest.mark.parametrize(
    ("endpoint", "every_s"),
    [
        ("https://account.r2.cloudflarestorage.com", EVERY_S),
        ("https://account.eu.r2.cloudflarestorage.com", EVERY_S),
        ("https://r2.cloudflarestorage.com.example.org", 0.0),
        ("http://127.0.0.1:9000", 0.0),
        (None, 0.0),
    ],
)
def test_only_where_the_server_needs_it_are_writes_spaced(endpoint: str | None, every_s: float) -> None:
    assert write_interval_s(S3Spec("bucket", endpoint=endpoint)) == every_s


def test_writes_of_one_key_are_spaced_and_of_others_not() -> None:
    now_s = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_s[0] += seconds

    spacing = Spacing(1.0, clock=lambda: now_s[0], sleep=sleep)
    spacing.wait("lease")
    spacing.wait("other")
    assert slept == []
    now_s[0] += 0.25
    spacing.wait("lease")
    assert slept == [0.75]
    now_s[0] += 5.0
    spacing.wait("lease")
    assert slept == [0.75]


def test_the_lease_is_not_written_twice_within_a_second_to_r2(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    spec = S3Spec("bucket", "db", endpoint="https://account.r2.cloudflarestorage.com", path_style=True)
    with captured(spec) as (store, requests):
        monkeypatch.setattr(store._spacing, "_sleep", slept.append)
        version = store.swap("walcast-lease", b"1", None)
        store.swap("walcast-lease", b"2", version)
    assert len(requests) == 2
    assert 0.0 < slept[0] <= EVERY_S
