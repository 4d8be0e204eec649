"""What all tests share."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Generator

import pytest
from support.forks import end_shared_forks

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the commands do; the processes that tests start inherit it


@pytest.fixture
def seed() -> int:
    """A fresh seed, shown when the test fails; WALCAST_TEST_SEED=N repeats one."""
    value = int(os.environ.get("WALCAST_TEST_SEED") or random.randrange(1 << 32))
    print(f"WALCAST_TEST_SEED={value}")
    return value


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector does not look at thousands of modules and tests, which all stay: two seconds a worker."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    end_shared_forks()
