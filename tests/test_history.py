"""The history checker, on histories made by hand and on followers that are really broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.e2e_state import TOTAL, Observation, create, observe_at
from support.history import check, read_commits, read_history
from support.nodes import follower, poll, primary
from support.writers import readers, writer

COMMITS = [Observation(seq, TOTAL, f"digest-{seq}") for seq in range(5)]


def test_commits_in_order_are_right_also_with_gaps_and_repeats() -> None:
    assert check(COMMITS, {"one": [COMMITS[0], COMMITS[0], COMMITS[2], COMMITS[4]], "two": [COMMITS[3]]}) == []


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        ([COMMITS[3], COMMITS[2]], "went back"),
        ([COMMITS[1], Observation(2, TOTAL, "digest-1")], "is not what was committed"),
        ([Observation(1, TOTAL - 5, "digest-1")], "the sum is"),
        ([Observation(9, TOTAL, "digest-9")], "which nobody made"),
        (["! DatabaseError: database disk image is malformed"], "malformed"),
    ],
)
def test_what_no_reader_may_see_is_found(seen: list[Observation | str], what: str) -> None:
    assert any(what in wrong for wrong in check(COMMITS, {"reader": seen}))


def test_two_commits_of_one_number_are_found() -> None:
    assert check([*COMMITS, Observation(4, TOTAL, "other")], {}) != []


def test_a_line_that_is_half_written_is_not_yet_there(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("1 60000 aa\n! error\n2 600")
    assert read_history(tmp_path / "history") == [Observation(1, 60000, "aa"), "! error"]


def violations(tmp_path: Path, seed: int, script: str | None) -> list[str]:
    """A primary, a follower (or a broken one), a writer and readers: what the checker says, or that nothing came."""
    db, replica, history = tmp_path / "app.db", tmp_path / "replica" / "app.db", tmp_path / "commits"
    create(db, seed=seed)
    first = observe_at(db)
    found: list[str] = []

    def wrong() -> bool:
        found[:] = check([first, *read_commits(history)], seen.histories())
        return bool(found)

    with (
        primary(db) as source,
        follower(replica, source.address, script=script),
        readers(replica, tmp_path, ("short", "short", "long")) as seen,
        writer(db, seed=seed, history=history, pause_s=0.005) as app,
    ):
        if script is None:
            seen.wait(10)
        else:
            # A state may be seen before its writer has recorded it; what is planted stays in the histories.
            assert poll(lambda: wrong() and any("nobody made" not in w for w in found), 30.0, 0.1), "nothing was found"
        app.stop()
        seen.stop()
        wrong()
        return found


def test_a_follower_that_is_right_passes(tmp_path: Path, seed: int) -> None:
    assert violations(tmp_path, seed, None) == []


def test_a_torn_apply_is_found(tmp_path: Path, seed: int) -> None:
    found = violations(tmp_path, seed, "e2e_torn_follower.py")
    assert any("is not what was committed" in wrong or "the sum is" in wrong for wrong in found)


def test_a_step_back_is_found(tmp_path: Path, seed: int) -> None:
    found = violations(tmp_path, seed, "e2e_backward_follower.py")
    assert any("went back" in wrong for wrong in found)
    assert not any("malformed" in wrong for wrong in found), "each state was a commit, only the order is wrong"
