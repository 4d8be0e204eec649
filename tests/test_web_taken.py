"""Proofs of forwarded requests are taken once by all workers of a host together, and bodies take bounded room."""

from __future__ import annotations

import asyncio
import errno
import logging
import multiprocessing
import os
import random
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walcast.web.forwarding import REPLAY_BYTES
from walcast.web.sending_async import Kept
from walcast.web.spool import EMPTY_SHA256, MEMORY_BYTES, Budget, NoRoom, Spool
from walcast.web.taken import ALONE_MOST, NAME, PLACES, TRIED, Full, Taken

NOW_S = 1_700_000_000
PROCESSES, NONCES = 4, 50


def nonce(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def test_each_is_taken_once_and_forgotten_when_it_is_over(tmp_path: Path) -> None:
    taken = Taken(tmp_path)
    assert taken.take(nonce(1), NOW_S + 60, NOW_S)
    for later_s in (0, 1, 60):
        assert not taken.take(nonce(1), NOW_S + 60, NOW_S + later_s)
    assert taken.take(nonce(2), NOW_S + 60, NOW_S)
    assert taken.take(nonce(1), NOW_S + 121, NOW_S + 61), "its proof has ended long before"


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    assert Taken(tmp_path).take(nonce(1), NOW_S + 60, NOW_S)
    assert not Taken(tmp_path).take(nonce(1), NOW_S + 60, NOW_S)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def _take_all(folder: Path, inherited: Taken, counts: Any, start: Any, number: int) -> None:
    read = os.pread

    def read_slowly(*arguments: int) -> bytes:
        data = read(*arguments)
        time.sleep(0.0005)  # between looking and taking others come
        return data

    os.pread = read_slowly  # type: ignore[assignment] - of this process
    taken = inherited if number % 2 else Taken(folder)
    start.wait(20)
    counts.put(sum(taken.take(nonce(one), NOW_S + 60, NOW_S) for one in range(NONCES)))


def test_workers_share_what_was_taken(tmp_path: Path) -> None:
    """Forked before or after the middleware was made."""
    context = multiprocessing.get_context("fork")
    counts, start, inherited = context.Queue(), context.Barrier(PROCESSES), Taken(tmp_path)
    workers = [
        context.Process(target=_take_all, args=[tmp_path, inherited, counts, start, n]) for n in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    found = [counts.get(timeout=20) for _ in workers]
    for worker in workers:
        worker.join(20)
    assert sum(found) == NONCES


def test_threads_share_it_too(tmp_path: Path) -> None:
    taken = Taken(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: taken.take(nonce(n % 50), NOW_S + 60, NOW_S), range(400)))
    assert sum(found) == 50


def test_where_the_file_cannot_be_every_process_remembers_for_itself_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"of somebody else")
    (tmp_path / NAME).symlink_to(elsewhere)
    taken = Taken(tmp_path)
    assert [taken.take(nonce(1), NOW_S + 60, NOW_S) for _ in range(3)] == [True, False, False]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert elsewhere.read_bytes() == b"of somebody else", "no link is followed"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOSPC])
def test_a_want_that_passes_refuses_a_request_and_lets_none_be_repeated_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whoever uses a worker's descriptors up must not have it forget what the others took."""
    workers = Taken(tmp_path), Taken(tmp_path)

    def lacking(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lacking)
        for worker in workers:
            with pytest.raises(Full):
                worker.take(nonce(1), NOW_S + 60, NOW_S)
    assert [worker.take(nonce(2), NOW_S + 60, NOW_S) for worker in workers] == [True, False]


def test_workers_share_again_once_the_file_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "app.db-walcast"
    workers = Taken(folder), Taken(folder)
    assert workers[0].take(nonce(1), NOW_S + 60, NOW_S)
    folder.mkdir()
    assert not workers[0].take(nonce(1), NOW_S + 60, NOW_S)
    assert [worker.take(nonce(2), NOW_S + 60, NOW_S) for worker in workers] == [True, False]


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is full takes no more, rather than forget."""
    taken = Taken(tmp_path)
    first = (7).to_bytes(8, "little")
    same = [first + number.to_bytes(8, "little") for number in range(TRIED + 1)]
    assert all(taken.take(one, NOW_S + 60, NOW_S) for one in same[:TRIED])
    with pytest.raises(Full):
        taken.take(same[TRIED], NOW_S + 60, NOW_S)
    assert not taken.take(same[0], NOW_S + 60, NOW_S)
    assert taken.take(same[TRIED], NOW_S + 121, NOW_S + 61)
    assert (tmp_path / NAME).stat().st_size <= PLACES * 24
    monkeypatch.setattr("walcast.web.taken.ALONE_MOST", 3)
    alone = Taken(tmp_path / "missing")
    assert all(alone.take(nonce(number), NOW_S + 60, NOW_S) for number in range(3))
    with pytest.raises(Full):
        alone.take(nonce(3), NOW_S + 60, NOW_S)
    assert alone.take(nonce(3), NOW_S + 121, NOW_S + 61)
    assert ALONE_MOST > 3


@settings(max_examples=50)
@given(st.binary(max_size=4096), st.integers(0, 2**63))
def test_a_file_that_is_damaged_is_no_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("taken")
    with (folder / NAME).open("wb") as file:
        file.seek(at % (PLACES * 24))
        file.write(data)
    taken = Taken(folder)
    assert [taken.take(nonce(at), NOW_S + 60, NOW_S) for _ in range(2)] == [True, False]


# Bodies


def test_a_body_in_tiny_pieces_takes_no_more_memory_than_one_in_large_ones() -> None:
    spool = Spool(Budget(1 << 30))
    spool.add(bytes(MEMORY_BYTES + 1))
    tracemalloc.start()
    try:
        for _ in range(50_000):
            spool.add(b"x")
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


def test_of_messages_that_bring_little_few_are_kept() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def memory() -> int:
        kept = Kept(receive)
        tracemalloc.start()
        try:
            for _ in range(REPLAY_BYTES):
                await kept.receive()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert asyncio.run(memory()) < 4 * REPLAY_BYTES


@pytest.mark.parametrize("sizes", [[], [0], [1], [MEMORY_BYTES], [MEMORY_BYTES, 1], [1, MEMORY_BYTES], [200_000, 5]])
def test_a_body_is_read_as_often_as_it_is_wanted(sizes: list[int]) -> None:
    budget = Budget(1 << 20)
    spool = Spool(budget)
    parts = [random.Random(size).randbytes(size) for size in sizes]
    for part in parts:
        spool.add(part)
    whole = b"".join(parts)
    assert spool.size == len(whole)
    assert spool.is_on_disk == (len(whole) > MEMORY_BYTES)
    assert budget.taken == (len(whole) if spool.is_on_disk else 0)
    for _ in range(2):
        assert b"".join(spool.chunks()) == whole
        assert spool.rewound().read() == whole
    reading = spool.rewound()
    del spool
    assert reading.read() == whole
    del reading
    assert budget.taken == 0


def test_bodies_take_no_more_than_their_budget() -> None:
    budget = Budget(300_000)
    one, other = Spool(budget), Spool(budget)
    one.add(bytes(200_000))
    other.add(bytes(MEMORY_BYTES))
    with pytest.raises(NoRoom):
        other.add(bytes(100_000))
    del one
    other.add(bytes(100_000))
    assert budget.taken == MEMORY_BYTES + 100_000
    assert Spool(budget).sha256 == EMPTY_SHA256
