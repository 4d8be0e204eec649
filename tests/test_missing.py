"""What a promotion says of what it loses: never more than can be known, never less."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from walcast.position import CHECKSUM_FLAG, Position
from walcast.terms import TermStart, first_txid
from walcast_follower.following import Following
from walcast_node.failover.lost_transactions import missing_facts, missing_words

HERE = Position(100, CHECKSUM_FLAG)


def follower(primary_txid: int, *, heard_s_ago: float | None = 3.0, history: tuple[TermStart, ...] = ()) -> Following:
    heard_ns = 0 if heard_s_ago is None else time.time_ns() - int(heard_s_ago * 1e9)
    facts = {"primary_txid": primary_txid}
    status, showing = SimpleNamespace(**facts), SimpleNamespace(heard_ns=heard_ns)
    return cast(Following, SimpleNamespace(status=status, showing=showing, history=history))


def said(following: Following, *, offered: bool = False) -> tuple[dict[str, Any], str]:
    facts = missing_facts(following, HERE, offered=offered)
    return facts, missing_words(facts)


@pytest.mark.parametrize(("primary_txid", "missing"), [(100, 0), (90, 0), (103, 3)])
def test_what_the_primary_was_heard_to_have_is_counted_and_the_rest_is_said_to_be_unknown(
    primary_txid: int, missing: int
) -> None:
    facts, words = said(follower(primary_txid))
    assert facts["missing"] == missing
    assert not facts["known"]
    assert words.startswith(f"{missing} transactions" if missing else "no transaction")
    assert "3.0 s ago, cannot be known" in words


def test_a_gap_between_terms_is_not_missing() -> None:
    start = Position(102, CHECKSUM_FLAG)
    history = (TermStart(2, start, first_txid(102)),)
    assert said(follower(first_txid(102) + 1, history=history))[0]["missing"] == 3


def test_of_a_primary_that_gave_everything_nothing_is_missing() -> None:
    facts, words = said(follower(100), offered=True)
    assert (facts["missing"], facts["known"]) == (0, True)
    assert words.startswith("nothing of the old primary is missing")


def test_of_a_primary_that_was_never_heard_of_nothing_is_known() -> None:
    _, words = said(follower(0, heard_s_ago=None))
    assert "cannot be known" in words
    assert "never heard" in words
