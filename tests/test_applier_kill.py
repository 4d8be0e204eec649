"""The applier is killed, at every step and at random instants, while readers read: a commit is left, old or new."""

from __future__ import annotations

import pickle
import random
import signal
import time
from pathlib import Path
from subprocess import Popen

import apsw
import numpy as np
import pytest
from support.apply_processes import PATIENCE_SECONDS, Sql, readers, script
from support.apply_source import Source, Transaction, copy_database
from support.apply_victim import STEPS

from walcast.checksum import PageChecksums
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.position import Position
from walcast.wal_writer import WalWriter
from walcast.walindex import BLOCK_SIZE, FRAMES_FIRST_BLOCK, HashBlock
from walcast_follower.apply.applier import Applier


def recovered(path: Path, to: Path) -> int:
    """The database checksum that SQLite's recovery gives, of a copy; also checks its integrity."""
    copy = copy_database(path, to)
    connection = apsw.Connection(str(copy))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    files = DatabaseFiles(copy)
    with PageReader(files, connection) as reader:
        checksum = PageChecksums.scan(reader.header.page_size, reader.chunks()).database
    connection.close()
    files.close()
    return checksum


def lines_until_dead(victim: Popen[str]) -> list[str]:
    assert victim.stdout is not None
    lines = victim.stdout.read().splitlines()
    assert victim.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    return lines


def reopen(path: Path, state: Path) -> Position:
    """The position after a crash; that it is the file's is checked with an independent look at all pages."""
    applier = Applier.open(path, state)
    with PageReader(applier._files, applier._connections[0]) as reader:
        scanned = PageChecksums.scan(applier.page_size, reader.chunks()).database
    assert scanned == applier.position.checksum
    position = applier.position
    applier.close()
    return position


def after(transactions: list[Transaction], position: Position) -> Position:
    """The position that follows."""
    return next((t.position for t in transactions if t.position.txid > position.txid), position)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_either_the_old_or_the_new_commit_is_left(tmp_path: Path, step: str) -> None:
    source = Source(tmp_path)
    transactions = [source.transfer(), source.grow(), source.change_schema(), source.rewrite_all()]
    (tmp_path / "transactions").write_bytes(pickle.dumps(transactions))
    path = source.copy_to(tmp_path / "replica" / "app.db")
    old, new = transactions[-2].position, transactions[-1].position
    with readers(path, tmp_path, ("short", "long")) as found, Sql.on(path) as reader:
        with script("apply_victim", str(path), str(tmp_path / "state"), str(tmp_path / "transactions"), step) as victim:
            assert lines_until_dead(victim)[-1] == str(old)
        assert found.wait(2)
        assert recovered(path, tmp_path / "copy") in (old.checksum, new.checksum)
        position = reopen(path, tmp_path / "state")
        assert position in (old, new)
        assert reader("SELECT version FROM meta") == [[4 if position == new else 3]]
        assert found.wait(2)
        # And on it goes.
        applier = Applier.open(path, tmp_path / "state")
        for transaction in [*transactions, source.grow(), source.vacuum(), source.transfer()]:
            if transaction.position.txid > position.txid:
                transaction.apply(applier)
        assert found.wait(2)
    assert found.violations == []
    assert applier.checkpoint().complete
    applier.close()
    assert path.read_bytes() == source.close()


def test_what_a_killed_writer_left_in_the_wal_index_is_cleaned(tmp_path: Path) -> None:
    source = Source(tmp_path)
    transactions = [source.transfer(), source.grow(50)]
    (tmp_path / "transactions").write_bytes(pickle.dumps(transactions))
    path = source.copy_to(tmp_path / "replica" / "app.db")
    with Sql.on(path) as reader:
        reader("SELECT 1 FROM meta")
        arguments = (str(path), str(tmp_path / "state"), str(tmp_path / "transactions"), "inside the hashes")
        with script("apply_victim", *arguments) as victim:
            lines_until_dead(victim)
        applier = Applier.open(path, tmp_path / "state")
        pgnos = applier._files.frame_pgnos(FRAMES_FIRST_BLOCK)
        assert len(transactions[0].pgnos) == applier.wal_frames == np.count_nonzero(pgnos)
        fresh = HashBlock.of(memoryview(bytearray(BLOCK_SIZE)), True)
        fresh.insert(0, pgnos[: applier.wal_frames].tolist())
        assert applier._wal._block(0).slots == fresh.slots
        applier.close()
    source.close()


def rounds(tmp_path: Path, count: int, seed: int) -> None:
    print(f"seed={seed}")
    rng = random.Random(seed)
    source = Source(tmp_path, rng.choice((512, 4096)), seed)
    path = source.copy_to(tmp_path / "replica" / "app.db")
    state, file = tmp_path / "state", tmp_path / "transactions"
    position = source.first_position
    with readers(path, tmp_path, ("short", "long")) as found:
        for i in range(count):
            source.run(60)
            file.write_bytes(pickle.dumps(source.transactions))
            with script("apply_victim", str(path), str(state), str(file)) as victim:
                assert victim.stdout is not None
                victim.stdout.readline()  # ready
                end = time.perf_counter() + rng.random() * 0.02
                while time.perf_counter() < end:
                    pass
                victim.kill()
                told = [Position.parse(line) for line in lines_until_dead(victim) if len(line) == 33]
            at_least = told[-1] if told else position
            assert recovered(path, tmp_path / f"copy-{i}") in (
                at_least.checksum,
                after(source.transactions, at_least).checksum,
            )
            if position != source.first_position or told:
                position = reopen(path, state)
                assert position in (at_least, after(source.transactions, at_least))
        assert found.wait(2)
    assert found.violations == []
    applier = Applier.open(path, state)
    for transaction in source.transactions:
        if transaction.position.txid > applier.position.txid:
            transaction.apply(applier)
    assert applier.checkpoint().complete
    applier.close()
    assert path.read_bytes() == source.close()


def test_killed_at_random_instants_the_replica_resumes_where_its_file_is(tmp_path: Path) -> None:
    rounds(tmp_path, 10, seed=random.randrange(1 << 32))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_instants_many_times(tmp_path: Path, seed: int) -> None:
    rounds(tmp_path, 60, seed)


class CommitFrameEarly(WalWriter):
    """A planted bug: gives a frame a commit size before the transaction is complete."""

    def append(self, pgno: int, page: bytes | bytearray | memoryview) -> None:
        if self._pgnos:
            self._flush(self._buffered, self.header.commit_pages)
        super().append(pgno, page)


def test_the_recovery_check_finds_a_commit_frame_that_is_written_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Applier, "writer", CommitFrameEarly)
    source = Source(tmp_path)
    applier = Applier.open(source.copy_to(tmp_path / "replica" / "app.db"), tmp_path / "state")
    first, second = source.grow(), source.transfer()
    first.apply(applier)
    applier.begin()
    applier.write_pages(second.pgnos, second.pages)
    assert recovered(applier.path, tmp_path / "copy") not in (first.position.checksum, second.position.checksum)
    applier.close()
    source.close()
