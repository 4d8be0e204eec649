"""A command run in this process: what it printed and its exit code. The log's settings are put back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click
from click.testing import CliRunner, Result


def run(command: click.Command, *args: object) -> Result:
    """Standard output in `stdout`, standard error in `stderr`."""
    with _log_as_it_was():
        return CliRunner().invoke(command, [str(arg) for arg in args])


@contextmanager
def _log_as_it_was() -> Iterator[None]:
    log = logging.getLogger("walcast")
    before = log.handlers[:], log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:], log.level, log.propagate = before[0], before[1], before[2]
