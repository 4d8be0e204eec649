"""Terms that another node names, in a set without a lease: an impossible one moves nobody, and is not stored."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from support.e2e_state import create
from support.nodes import primary
from support.writers import sql

from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.statedir import state_dir
from walcast.terms import TERM_STEP_MAX, read_standing
from walcast_node.failover import switchover


def test_a_primary_makes_way_for_no_impossible_term(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    create(path)
    with primary(path) as node, grpc.insecure_channel(node.address) as channel:
        stub = rpc.ReplicationStub(channel)
        for term in (2 + TERM_STEP_MAX, 2**32 - 1):
            reply = stub.StepDown(pb.StepDownRequest(database="app", term=term, primary="127.0.0.1:1"), timeout=10.0)
            assert reply.HasField("refusal")
        assert stub.Status(pb.StatusRequest(), timeout=10.0).databases[0].role == "primary"
        standing = read_standing(state_dir(path))
        assert standing is None or standing.term == 1
        with sql(path) as app:
            app("UPDATE accounts SET balance = balance + 1")
        assert len(node.events("a node says that it is the primary of an impossible term")) == 2


@pytest.mark.parametrize("term", [0, 3, 3 + TERM_STEP_MAX + 1, 2**32 - 1])
def test_a_follower_takes_no_place_in_a_term_that_cannot_be_the_next(term: int) -> None:
    member: Any = SimpleNamespace(
        settings=SimpleNamespace(eligible=True),
        standing=SimpleNamespace(term=2),
        following=SimpleNamespace(term=3),
        expect_promotion=lambda: pytest.fail("takes it"),
    )
    reply = asyncio.run(switchover.take_over(member, pb.HandOver(term=term)))
    assert not reply.taken
    assert reply.detail
