"""Barriers across changes of the primary: by its path on each host, and over gRPC at several addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.nodes import PATIENCE_S
from support.nodes import walcast as run
from support.replica_set import SetNode, replica_set

import walcast


def write(node: SetNode) -> None:
    app = node.app(timeout_s=PATIENCE_S)
    app("INSERT INTO t VALUES (1)")


def test_barriers_follow_the_primary_and_their_tokens_stay_in_order(tmp_path: Path) -> None:
    with replica_set(tmp_path, ids=("a", "b"), auto=False, archive=False) as it:
        a, b = it.node("a"), it.node("b")
        on_a, on_b = walcast.Primary(a.db), walcast.Primary(b.db)
        with walcast.Primary(f"{a.gate},{b.gate}") as anywhere:
            write(a)
            first = anywhere.barrier(followers=1, timeout=PATIENCE_S)
            assert on_a.barrier() == first
            with pytest.raises(walcast.NotPrimary) as caught:
                on_b.barrier()
            assert caught.value.primary == a.gate
            # A token of `a` would say nothing of what an app has written, or believes to have written, beside `b`.
            with walcast.Primary(b.gate) as there, pytest.raises(walcast.NotPrimary, match="not the primary"):
                there.barrier()

            b.promote()
            write(b)
            second = on_b.barrier()
            assert second > first
            assert anywhere.barrier() == second
            with pytest.raises(walcast.NotPrimary) as caught:
                on_a.barrier(followers=2)
            assert caught.value.primary == b.gate
            walcast.Replica(a.db).wait_for(second, timeout=PATIENCE_S)

            b.kill()
            a.promote(force=True)
            third = on_a.barrier()
            assert third > second
            assert anywhere.barrier() == third
            for token in (first, second, third):
                walcast.Replica(a.db).wait_for(token, timeout=PATIENCE_S)
            with pytest.raises(walcast.Unavailable):
                on_b.barrier()


def test_what_was_committed_before_a_hand_over_is_still_given_its_token(tmp_path: Path) -> None:
    """An app asks after its commit: the place may have been handed over between the two."""
    with replica_set(tmp_path, ids=("a", "b"), auto=False, archive=False) as it:
        a, b = it.node("a"), it.node("b")
        on_a, on_b = walcast.Primary(a.db), walcast.Primary(b.db)

        def hand_over(old: SetNode, new: SetNode) -> None:
            said = run("switchover", old.address, "--to", new.id)
            assert said.returncode == 0, said.stderr

        write(a)
        newest = on_a.barrier()
        hand_over(a, b)
        assert on_a.barrier(followers=1) == newest
        assert on_b.barrier() > newest
        with pytest.raises(walcast.NotPrimary):
            on_a.barrier(followers=2)

        hand_over(b, a)
        write(a)
        assert on_a.barrier() > newest
        b.promote(force=True)  # not handed over: what is committed here may be lost
        assert a.is_("follower")
        with pytest.raises(walcast.NotPrimary):
            on_a.barrier()
