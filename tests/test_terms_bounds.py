"""Which terms a node believes that others name."""

from __future__ import annotations

import pytest

from walcast.terms import TERM_MAX, TERM_STEP_MAX, TERM_TXIDS, TXID_MAX, TXID_STEP_MAX, first_txid, is_plausible_term


@pytest.mark.parametrize(
    ("term", "seen", "plausible"),
    [
        (1, 0, True),
        (1_500, 0, True),  # a new follower of an old set
        (TERM_MAX, 0, True),
        (TERM_MAX + 1, 0, False),
        (2**32 - 1, 0, False),
        (5, 7, True),  # older: somebody else's question
        (7 + TERM_STEP_MAX, 7, True),
        (8 + TERM_STEP_MAX, 7, False),
        (TERM_MAX + 1, TERM_MAX, False),
        (-1, 0, False),
    ],
)
def test_a_term_far_above_the_newest_seen_is_not_believed(term: int, seen: int, plausible: bool) -> None:
    assert is_plausible_term(term, seen) is plausible


def test_the_gap_before_any_term_that_is_believed_is_within_the_bound_of_a_step() -> None:
    for before in (0, 1, TERM_TXIDS - 1, TERM_TXIDS, TXID_MAX - 1):
        after = first_txid(before, TERM_STEP_MAX)
        assert after - before <= TXID_STEP_MAX
        assert after < 2**63
