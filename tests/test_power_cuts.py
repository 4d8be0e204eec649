"""Power cuts: what was confirmed is there afterwards, whatever lost its power, and when. The rules are in
`support/power_cut_campaign.py`.

    WALCAST_CUTS=50 WALCAST_SEED=7 pytest -m slow tests/test_power_cuts.py -s

WALCAST_CUT_KINDS=both,primary, WALCAST_CUT_MODE=NORMAL and WALCAST_CUT_SET=pair|archived|leased choose a part; a line
is printed for each fault, and one with all counts at the end. With WALCAST_CUTS_KEEP=1 the files of a life with a fault
stay.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.crash_images import newest_row
from support.forks import Forks, forks
from support.nodes import ENVIRONMENT
from support.power_cut import disk, own_mounts, why_not
from support.power_cut_campaign import campaign
from support.writers import child

CUTS = 1000
MOST_S = 5400.0
ROWS = 10


@pytest.fixture
def power(tmp_path: Path) -> Path:
    """A folder for disks that may lose their power; skipped where that cannot be had."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    own_mounts()
    return tmp_path


@pytest.fixture
def forked() -> Iterator[Forks]:
    with forks(ENVIRONMENT) as made:
        yield made


def test_a_cut_takes_what_was_not_synced_and_nothing_else(power: Path) -> None:
    with disk(power / "a") as a:
        kept, lost = a.path / "kept", a.path / "lost"
        kept.write_bytes(b"before")
        a.sync()
        with kept.open("r+b") as file:
            file.write(b"synced")
            file.flush()
            os.fsync(file.fileno())
        with kept.open("ab") as file:
            file.write(b" and not")
        lost.write_bytes(b"never")
        a.cut()
        with pytest.raises(OSError, match="Input/output error"):
            lost.write_bytes(b"too late")
        a.back()
        assert kept.read_bytes() == b"synced"
        assert not lost.exists()


def test_a_disk_that_is_in_use_leaves_nothing_mounted(power: Path) -> None:
    with disk(power / "a") as a, (a.path / "held").open("wb"):
        a.cut()
        assert str(a.path) in mounts()
        a.close()
        assert str(a.path) not in mounts()


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def test_a_wal_restarts_only_over_a_database_that_is_durable(power: Path) -> None:
    """The app has `synchronous=OFF`: its own checkpoints sync nothing."""
    with disk(power / "a") as a:
        with child("power_cut_machine.py", str(a.path / "m"), str(ROWS)) as app:
            a.cut()
            app.kill()
        a.back()
        alone = power / "alone.db"
        alone.write_bytes((a.path / "m" / "app.db").read_bytes())
        assert newest_row(alone) == ROWS


def test_both_hosts_lose_their_power_and_no_confirmed_row(power: Path, forked: Forks, seed: int) -> None:
    counts = campaign(forked, power, seed, cuts=3, seconds=30.0, kinds=("both",), topology="pair", synchronous="NORMAL")
    print(counts.line())
    assert not counts.faults, counts.faults[0]
    assert counts.confirmed > 0


def test_a_follower_that_comes_back_alone_takes_over(power: Path, forked: Forks, seed: int) -> None:
    counts = campaign(forked, power, seed, cuts=1, seconds=30.0, kinds=("alone",), topology="leased")
    print(counts.line())
    assert not counts.faults, counts.faults[0]


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["redo", "barrier", "log", "names"])
def test_a_planted_bug_is_found(power: Path, seed: int, bug: str) -> None:
    with forks(ENVIRONMENT | {"PLANTED_BUG": bug}) as planted:
        for offset in range(40):
            counts = campaign(planted, power, seed + 50 * offset, cuts=20, seconds=60.0, synchronous="NORMAL")
            if counts.faults:
                break
    print(bug, offset, counts.line())
    assert counts.faults


@pytest.mark.slow
def test_a_thousand_cuts_lose_no_confirmed_row(power: Path, forked: Forks) -> None:
    seed = int(os.environ.get("WALCAST_SEED") or random.randrange(1 << 30))
    cuts = int(os.environ.get("WALCAST_CUTS") or CUTS)
    kinds = tuple(kind for kind in os.environ.get("WALCAST_CUT_KINDS", "").split(",") if kind)
    print(f"WALCAST_SEED={seed} WALCAST_CUTS={cuts}", flush=True)
    counts = campaign(
        forked,
        power,
        seed,
        cuts=cuts,
        seconds=MOST_S,
        kinds=kinds,
        topology=os.environ.get("WALCAST_CUT_SET", ""),
        synchronous=os.environ.get("WALCAST_CUT_MODE", ""),
    )
    print(counts.line(), flush=True)
    assert not counts.faults, f"{len(counts.faults)} faults, the first: {counts.faults[0]}"
    assert counts.confirmed > cuts
