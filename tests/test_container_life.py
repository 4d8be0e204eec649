"""A product's life in containers: process 1, a read-only root, a user without rights, ten seconds to stop."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.container_life import (
    come_to_an_end,
    crash,
    deploy,
    fail_over,
    first_boot,
    kill_at_any_moment,
    life,
    lose_volume,
    store_of_lives,
)


def test_a_first_boot_a_crash_and_a_lost_volume_lose_nothing_and_upload_only_what_is_new(tmp_path: Path) -> None:
    with store_of_lives(tmp_path) as s3, life(tmp_path, s3, "one", fill_bytes=1 << 20) as one:
        home = first_boot(one)
        crash(one, home)
        lose_volume(one, home, planned=False)


@pytest.mark.slow
def test_ten_lives_lose_nothing_and_upload_only_what_is_new(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with store_of_lives(tmp_path) as s3:
        for number in range(10):
            with life(tmp_path, s3, f"life{number}", fill_bytes=4 << 20) as one:
                home = first_boot(one)
                for _ in range(1 + number % 3):
                    deploy(one, home)
                    crash(one, home)
                    home = fail_over(one, home, planned=rng.random() < 0.5)
                    lose_volume(one, home, planned=rng.random() < 0.5)
                come_to_an_end(one, home)


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing_that_is_archived_or_on_the_volume(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with store_of_lives(tmp_path) as s3:
        for number in range(3):
            with life(tmp_path, s3, f"life{number}", fill_bytes=4 << 20) as one:
                home = one.container()
                for _ in range(10):
                    kill_at_any_moment(one, home, rng)
                home.start_primary()
                one.wait_rows(10)
                home.wait_archived()
                come_to_an_end(one, home)
