"""Whatever bytes come from outside, only walcast's own errors go out, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from fuzz.engine import DEADLINE_S, Finding, Run, Target

TARGETS = (
    "wal",
    "walindex",
    "ltx",
    "messages",
    "publisher",
    "objects",
    "urls",
    "config",
    "statefiles",
    "litestream03",
    "copies",
    "credentials",
    "neighbours",
    "http",
    "logs",
    "status",
)
INPUTS = int(os.environ.get("WALCAST_FUZZ_INPUTS") or 1_000_000)


def target(name: str) -> Target:
    return Target.of(import_module(f"fuzz.{name}"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs_make_no_error_but_walcasts_own(name: str, seed: int) -> None:
    one = target(name)
    report = Run(one, seed).go(one.short)
    print(report)
    assert report.lines > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_million_inputs_make_no_error_but_walcasts_own(
    name: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Run(target(name), seed).go(INPUTS)
    with capsys.disabled():
        print(f"\n{report}")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this Python")
@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_are_guided_by_coverage_make_no_error_but_walcasts_own(
    name: str, seed: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fuzz.guided", name, str(INPUTS // 10), str(seed % (1 << 31) or 1)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"stat::number_of_executed_units: {INPUTS // 10}" in done.stderr


def _planted(run: object, *seeds: bytes) -> Target:
    return Target("planted", run, seeds, (ValueError,), (), target("wal").running, 1, 1 << 20)  # type: ignore[arg-type]


def test_an_error_that_is_not_walcasts_is_found_with_its_input(seed: int) -> None:
    def planted(data: bytes) -> None:
        if data[:1] == b"x" and len(data) > 3:
            raise IndexError

    with pytest.raises(Finding) as caught:
        Run(_planted(planted, b"abcd"), seed).go(100_000)
    assert caught.value.data[:1] == b"x"


def test_an_input_that_takes_memory_out_of_proportion_is_found(seed: int) -> None:
    with pytest.raises(Finding):
        Run(_planted(lambda data: bytearray(8 << 20), b"abcd"), seed).go(1000)


def test_a_target_that_keeps_what_it_is_given_is_found(seed: int) -> None:
    kept: list[bytes] = []
    with pytest.raises(Finding):
        Run(_planted(lambda data: kept.append(b"x" * 1_000_000), b"abcd"), seed).go(240)


def test_an_input_that_hangs_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEADLINE_S > 1
    monkeypatch.setattr("fuzz.engine.DEADLINE_S", 0.05)

    def planted(data: bytes) -> None:
        while True:
            pass

    with pytest.raises(Finding):
        Run(_planted(planted, b"abcd"), seed).go(1)
