"""How far a long transfer is, on standard error: a bar on a terminal, elsewhere a line every five seconds.

A transfer that ends within five seconds prints no line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

EVERY_S = 5.0
MIB = 1 << 20

Report = Callable[[int, int], None]


@contextmanager
def progress_of(what: str, *, quiet: bool = False) -> Iterator[Report | None]:
    """What to call with bytes done and bytes in all, for where standard error goes; None when `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        bar = Progress(what)
        try:
            yield bar
        finally:
            bar.stop()
    else:
        yield Lines(what, sys.stderr)


class Progress:
    """Call it with bytes done and bytes in all; it appears with the first call and goes with the last."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            # Here, since it takes a while, and most restores are not watched.
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Bar(TextColumn("{task.description}"), *columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)
        if done >= total:
            self.stop()

    def stop(self) -> None:
        """Take it away, also before the end: an error must not be written into it."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Lines:
    """One line in `EVERY_S`, and one at the end of what took longer."""

    def __init__(self, what: str, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._out = out
        self._clock = clock
        self._began_s = self._last_s = clock()
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        now_s = self._clock()
        ends = done >= total and not self._ended and now_s - self._began_s >= EVERY_S
        if not ends and now_s - self._last_s < EVERY_S:
            return
        self._last_s = now_s
        self._ended = done >= total
        rate = done / MIB / max(now_s - self._began_s, 1e-9)
        share = 100 * done // max(total, 1)
        print(
            f"{self._what}: {share}%, {done / MIB:,.0f} of {total / MIB:,.0f} MiB, {rate:,.0f} MiB/s",
            file=self._out,
            flush=True,
        )
