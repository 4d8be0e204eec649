"""What nodes write for each other: the lease and the claims."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walcast.errors import Corrupt
from walcast.store import ObjectInfo
from walcast.terms import TERM_MAX
from walcast_node.failover import claims, lease
from walcast_node.failover.claims import Claim, rank
from walcast_node.failover.lease import Lease, fitting

LEASE = Lease(3, "f00", "10.0.0.1:7420", 10.0, "run-1")
CLAIM = Claim("f00", "run-1", 3, 4711, 2)
texts = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=40)
addresses = st.builds("{}:{}".format, st.sampled_from(["10.0.0.1", "db-1.example", "[::1]"]), st.integers(0, 65535))
txids = st.integers(0, 2**64 - 1)
claim = st.builds(
    Claim, st.text("abc", min_size=1, max_size=2), st.sampled_from("xy"), st.integers(0, 2), st.integers(0, 2)
)


def changed(data: bytes, **facts: object) -> bytes:
    return json.dumps({**json.loads(data), **facts}).encode()


def without(data: bytes, name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(data).items() if key != name}).encode()


@given(
    st.builds(
        Lease,
        st.integers(1, TERM_MAX),
        texts,
        addresses,
        st.floats(lease.LEAST_S, lease.MOST_S),
        texts,
    )
)
def test_a_lease_is_read_as_it_was_written(written: Lease) -> None:
    assert Lease.decode(written.encode(1_767_225_600)) == written


@pytest.mark.parametrize("written", [LEASE, CLAIM])
def test_they_name_the_database_where_its_id_is_known(written: Lease | Claim) -> None:
    named = replace(written, database="0f" * 16)
    data = named.encode(0) if isinstance(named, Lease) else named.encode()
    assert json.loads(data)["database"] == "0f" * 16
    assert type(written).decode(data) == named
    assert type(written).decode(without(data, "database")) == written
    for wrong in ("", "0f" * 15, "0F" * 16, 7, None):
        with pytest.raises(Corrupt):
            type(written).decode(changed(data, database=wrong))


def test_a_claim_of_another_database_counts_for_nothing() -> None:
    mine = Claim("m", "n", 3, 10, 5, "a" * 32)
    first = Claim("z", "n", 4, 11, 5)
    assert rank([first, replace(first, id="y", database="a" * 32)], mine) == 2
    assert rank([replace(first, database="b" * 32)], mine) == 0


@given(st.builds(Claim, texts, texts, st.integers(0, TERM_MAX), txids, st.integers(-(2**31), 2**31)))
def test_a_claim_is_read_as_it_was_written(written: Claim) -> None:
    assert Claim.decode(written.encode()) == written


def test_the_expiry_is_there_for_people() -> None:
    assert json.loads(LEASE.encode(1_767_225_600))["expires"] == "2026-01-01T00:00:10Z"


def test_what_is_not_known_yet_is_passed_over() -> None:
    assert Lease.decode(changed(LEASE.encode(0), later=1)) == LEASE
    assert Claim.decode(changed(CLAIM.encode(), later=1)) == CLAIM


@pytest.mark.parametrize(
    "facts",
    [
        {"walcast_lease": 2},
        {"term": math.inf},
        {"nonce": ""},
        {"lease_s": 0.01},
        {"term": 0},
        {"term": -1},
        {"term": 1 << 32},
        {"term": "three"},
        {"term": None},
        {"lease_s": 0},
        {"lease_s": -1},
        {"lease_s": math.nan},
        {"lease_s": math.inf},
        {"term": 2**32 - 1},
        {"term": TERM_MAX + 1},
        {"lease_s": 3601},
        {"lease_s": 86_400.0},
        {"lease_s": []},
        {"holder": ""},
        {"holder": "h" * 201},
        {"holder": "a\nb"},
        {"address": ""},
        {"address": "x"},
        {"address": "h:99999"},
        {"address": "\x1b[2J:1"},
        {"nonce": "n" * 201},
        {"followers": ["f"] * 101},
        {"followers": ["\u202e"]},
        {"followers": 7},
    ],
    ids=str,
)
def test_a_lease_with_this_in_it_is_refused(facts: dict[str, object]) -> None:
    with pytest.raises(Corrupt, match="lease"):
        Lease.decode(changed(LEASE.encode(0), **facts))


@pytest.mark.parametrize(
    "facts",
    [{"holder": "A" * 20_000}, {"address": "x"}, {"lease_s": 86_400.0}, {"term": 2**32 - 1}, {"followers": ("\n",)}],
    ids=str,
)
def test_a_lease_that_no_node_would_read_is_never_written(facts: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        replace(LEASE, **facts).encode(0)


@given(st.lists(st.text("\u0100\U0001f600a", min_size=1, max_size=200), max_size=300))
def test_a_lease_with_any_followers_can_be_read_again(followers: list[str]) -> None:
    written = replace(LEASE, holder="\U0001f600" * 200, followers=fitting(followers))
    assert Lease.decode(written.encode(0)) == written
    assert written.followers == tuple(followers[: len(written.followers)])


def test_a_claim_of_an_impossible_term_delays_nobody() -> None:
    mine = Claim("m", "n", 3, 10, 5)
    assert rank([Claim("z", "n", 3 + 1001, 1)], mine) == 0
    assert rank([Claim("z", "n", 3 + 1000, 1)], mine) == 1


def test_of_what_lies_among_the_claims_little_is_read() -> None:
    big = [ObjectInfo(f"walcast-claims/{number}", 2 << 30, 9) for number in range(5)]
    many = [ObjectInfo(f"walcast-claims/{number:05d}", 100, number) for number in range(5000)]
    keys = [found.key for found in claims.worth_reading([*big, *many])]
    assert len(keys) == claims.MOST_CLAIMS
    assert keys[0] == "walcast-claims/04999"
    assert claims.worth_reading(big) == []
    expected = [found.key for found in claims.worth_reading(many, ["00003"])]
    assert expected[:2] == ["walcast-claims/00003", "walcast-claims/04999"]


@pytest.mark.parametrize("name", ["walcast_lease", "term", "holder", "address", "lease_s", "nonce"])
def test_a_lease_without_one_of_its_facts_is_refused(name: str) -> None:
    with pytest.raises(Corrupt):
        Lease.decode(without(LEASE.encode(0), name))


@pytest.mark.parametrize("name", ["walcast_claim", "id", "nonce", "term", "txid", "priority"])
def test_a_claim_without_one_of_its_facts_is_refused(name: str) -> None:
    with pytest.raises(Corrupt):
        Claim.decode(without(CLAIM.encode(), name))


NO_OBJECTS = [b"", b"{", b"[]", b"null", b"3", b'"lease"', b"\xff\xfe", b"{}"]


@pytest.mark.parametrize("data", NO_OBJECTS, ids=repr)
def test_what_is_no_lease_and_no_claim_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Lease.decode(data)
    with pytest.raises(Corrupt):
        Claim.decode(data)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_no_damage_raises_anything_but_corrupt(noise: bytes, place: int) -> None:
    for good, decode in ((LEASE.encode(0), Lease.decode), (CLAIM.encode(), Claim.decode)):
        try:
            decode(good[:place] + noise + good[place + len(noise) :])
        except Corrupt:
            continue


def test_a_lease_is_never_longer_than_is_read() -> None:
    with pytest.raises(Corrupt):
        Lease.decode(LEASE.encode(0) + b" " * lease.MOST_BYTES)


def test_a_claim_lies_under_its_node() -> None:
    assert CLAIM.key == claims.PREFIX + "f00"


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (Claim("z", "n", 4, 1, 0), True),  # a later term, however few transactions
        (Claim("z", "n", 3, 11, 0), True),
        (Claim("z", "n", 3, 10, 6), True),  # as much, and a higher priority
        (Claim("a", "n", 3, 10, 5), True),  # all the same: by id
        (Claim("z", "n", 3, 10, 5), False),
        (Claim("a", "n", 3, 10, 4), False),
        (Claim("a", "n", 3, 9, 9), False),
        (Claim("a", "n", 2, 99, 9), False),
        (Claim("a", "old", 9, 99, 9), False),  # of another lease
        (Claim("m", "n", 9, 99, 9), False),  # what this node itself had said before
    ],
    ids=str,
)
def test_who_goes_first(other: Claim, first: bool) -> None:
    assert rank([other], Claim("m", "n", 3, 10, 5)) == first


@given(st.lists(claim, max_size=6, unique_by=lambda one: one.id))
def test_all_candidates_agree_on_one_order(made: list[Claim]) -> None:
    for nonce in "xy":
        ranks = sorted(rank(made, mine) for mine in made if mine.nonce == nonce)
        assert ranks == list(range(len(ranks)))
