"""What is said of a restore that takes its time, and that nothing which is said keeps a stop from ending."""

from __future__ import annotations

import asyncio
import queue
import threading
from pathlib import Path

import pytest

from walcast_node.config.settings import DatabaseSettings
from walcast_node.process import first_boot, stop_deadline
from walcast_node.process.first_boot import restore_when_reachable
from walcast_node.process.stop_deadline import SLACK_S, StopDeadline


def test_a_restore_that_takes_its_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str | None] = []
    told = threading.Event()

    def say(why: str | None) -> None:
        said.append(why)
        told.set()

    monkeypatch.setattr(first_boot, "restore_missing", lambda *_: told.wait(10.0))
    monkeypatch.setattr(first_boot, "RESTORE_FIRST_S", 0.01)
    settings = DatabaseSettings(tmp_path / "app.db", "app", "/archive", restore=True)
    assert asyncio.run(restore_when_reachable(settings, lambda: False, say))
    assert [why is not None for why in said] == [True, False]


def test_a_log_whose_reader_hangs_does_not_keep_a_stop_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: queue.Queue[int] = queue.Queue()
    read = threading.Event()
    monkeypatch.setattr(stop_deadline, "SAY_S", 0.01)
    monkeypatch.setattr(stop_deadline.log, "error", lambda *_, **__: read.wait())
    StopDeadline(-SLACK_S, ended.put).begin()
    try:
        assert ended.get(timeout=10.0) == 1
    finally:
        read.set()
