"""The ledger check: failovers at random under load; what was acknowledged survives, and all copies are one.

The rules of the rounds are in `support/failover_campaign.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.failover_campaign import KINDS, campaign


def run(directory: Path, seed: int, failovers: int, **options: str) -> None:
    with campaign(directory, seed, **options) as it:  # type: ignore[arg-type]
        for number in range(failovers):
            if number % len(KINDS) == 0:
                deck = list(KINDS)
                it.rng.shuffle(deck)
            it.round(deck[number % len(KINDS)])
        print(it.finish())


def test_three_failovers_lose_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    run(tmp_path, seed, 3)


@pytest.mark.slow
@pytest.mark.parametrize("offset", range(5))
def test_forty_failovers_five_times(tmp_path: Path, seed: int, offset: int) -> None:
    run(tmp_path, seed + offset, 40)


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["swap", "tenure", "publisher", "election", "discarded"])
def test_a_planted_bug_is_found(tmp_path: Path, seed: int, bug: str) -> None:
    with pytest.raises(AssertionError) as found:
        run(tmp_path, seed, 40, script="failover_planted.py", bug=bug)
    print(f"{bug}: {str(found.value)[:400]}")
