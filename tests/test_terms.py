"""Terms: their TXIDs, where histories part, and what a node remembers of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walcast.errors import ConfigError
from walcast.position import CHECKSUM_FLAG, Position
from walcast.terms import (
    FOLLOWER,
    PRIMARY,
    TERM_TXIDS,
    Standing,
    TermStart,
    begun_with,
    first_txid,
    forked_at,
    gaps_between,
    read_standing,
    term_of,
    write_standing,
)


def at(txid: int) -> Position:
    return Position(txid, CHECKSUM_FLAG | txid)


def terms(*ends: int) -> tuple[TermStart, ...]:
    """Term 2 follows the first end, term 3 the second, …"""
    return tuple(TermStart(term, at(end), first_txid(end)) for term, end in enumerate(ends, 2))


@given(st.integers(0, 1 << 50))
def test_a_term_begins_far_behind_the_one_before_at_a_round_number(txid: int) -> None:
    first = first_txid(txid)
    assert TERM_TXIDS <= first - txid <= 2 * TERM_TXIDS
    assert first % TERM_TXIDS == 0


@given(st.integers(0, 1 << 50), st.integers(1, 9), st.integers(0, TERM_TXIDS // 2))
def test_terms_that_a_node_missed_have_their_txids_before_its_own(txid: int, missed: int, each: int) -> None:
    theirs = txid
    for _ in range(missed):
        theirs = first_txid(theirs) + each
    assert first_txid(txid, missed + 1) > theirs


def test_who_is_behind_or_level_has_left_no_history() -> None:
    history = terms(100)
    assert forked_at(history, 1, at(100)) is None
    assert forked_at(history, 1, at(40)) is None
    assert forked_at(history, 2, at(first_txid(100) + 5)) is None
    assert forked_at((), 1, at(100)) is None


def test_who_went_on_in_an_older_term_left_the_history_where_the_next_one_began() -> None:
    second = first_txid(100)
    history = terms(100, second + 10)
    assert forked_at(history, 1, at(101)) == at(100)
    assert forked_at(history, 1, at(second - 1)) == at(100)
    assert forked_at(history, 2, at(second + 11)) == at(second + 10)


def test_a_txid_belongs_to_the_newest_term_that_had_begun() -> None:
    history = terms(100, first_txid(100) + 10)
    assert term_of(history, 100) == 0
    assert term_of(history, first_txid(100) - 1) == 0  # in the gap
    assert term_of(history, first_txid(100)) == 2
    assert term_of(history, history[1].first_txid + 7) == 3
    assert term_of((), 100) == 0


def test_a_gap_is_no_transaction_that_is_missing() -> None:
    second = first_txid(100)
    history = terms(100, second + 10)
    third = first_txid(second + 10)
    assert gaps_between(history, 90, second + 3) == second - 100
    assert gaps_between(history, 90, third) == (second - 100) + (third - second - 10)
    assert gaps_between(history, second, second + 5) == 0


@pytest.mark.parametrize("role", [PRIMARY, FOLLOWER])
def test_a_node_is_what_it_was(tmp_path: Path, role: str) -> None:
    assert read_standing(tmp_path) is None
    standing = Standing(role, 3, "10.0.0.1:7420", terms(100, first_txid(100) + 1), lease=True)
    write_standing(tmp_path, standing)
    assert read_standing(tmp_path) == standing
    write_standing(tmp_path, Standing(FOLLOWER, 4))
    assert read_standing(tmp_path) == Standing(FOLLOWER, 4)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{}", b"[]", b'{"role": "king", "term": 1, "primary": "", "history": [], "lease": false}', b"\xff", b"null"],
)
def test_a_damaged_role_is_an_error_that_says_what_to_do(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "role").write_bytes(damaged)
    with pytest.raises(ConfigError, match="start this node as a follower"):
        read_standing(tmp_path)


def test_many_terms_are_bounded(tmp_path: Path) -> None:
    history = tuple(TermStart(term, at(term * TERM_TXIDS), (term + 2) * TERM_TXIDS) for term in range(2, 500))
    write_standing(tmp_path, Standing(PRIMARY, 500, history=history))
    read = read_standing(tmp_path)
    assert read is not None
    assert read.history == history[-100:]


def test_a_term_that_is_begun_again_has_one_beginning() -> None:
    first, second, again = (
        TermStart(term, Position(txid, CHECKSUM_FLAG), first_txid(txid)) for term, txid in ((1, 1), (2, 5), (2, 9))
    )
    assert begun_with(begun_with((first,), second), again) == (first, again)
