"""When a duty of the archive's upkeep that failed is tried again."""

from __future__ import annotations

from walcast_primary.archiving.backoff import RETRY_S, Backoff


def test_pauses_grow_with_each_failure_and_end_with_a_success() -> None:
    backoff, now_s = Backoff(), 1000.0
    for pause_s in (*RETRY_S, RETRY_S[-1]):
        assert backoff.may_try(now_s)
        backoff.done(now_s, succeeded=False)
        assert not backoff.may_try(now_s + pause_s - 0.001)
        now_s += pause_s
    backoff.done(now_s, succeeded=True)
    assert backoff.may_try(now_s)
    assert backoff.failures == 0
