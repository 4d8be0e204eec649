"""What all tests share."""

from __future__ import annotations

import os
import random

import pytest
from support.forks import end_shared_forks

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the commands do; the processes that tests start inherit it


@pytest.fixture
def seed() -> int:
    """A fresh seed, shown when the test fails; WALCAST_TEST_SEED=N repeats one."""
    value = int(os.environ.get("WALCAST_TEST_SEED") or random.randrange(1 << 32))
    print(f"WALCAST_TEST_SEED={value}")
    return value


def pytest_unconfigure() -> None:
    end_shared_forks()
