"""What an example says, and whether it has shown what it is there to show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PATIENCE_S = 30.0
LOOK_S = 0.01


class NotSeen(Exception):
    """What an example is there to show was not to be seen: what that is."""


def until(what: Callable[[], object], is_what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for it. NotSeen when it does not happen."""
    end_s = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > end_s:
            raise NotSeen(f"{is_what}: not within {patience_s:g} s")
        time.sleep(LOOK_S)


@dataclass(slots=True)
class Tell:
    """Prints one line for each thing that was seen. Both kinds must have been told in the end."""

    write: Callable[[str], None] = print
    anomalies: int = 0
    kept: int = 0

    def without(self, seen: bool, text: str) -> None:
        """The anomaly, where the guarantee was not asked for. NotSeen when it did not happen."""
        self._line("without", seen, text)
        self.anomalies += 1

    def given(self, holds: bool, text: str) -> None:
        """What the guarantee makes of the same. NotSeen when it did not hold."""
        self._line("with", holds, text)
        self.kept += 1

    def _line(self, which: str, seen: bool, text: str) -> None:
        if not seen:
            raise NotSeen(f"{which} the guarantee, this was not to be seen: {text}")
        self.write(f"  {which:<9}{text}")

    def end(self) -> None:
        """NotSeen when only half of it was shown."""
        if not (self.anomalies and self.kept):
            raise NotSeen("one half of the example is missing")
