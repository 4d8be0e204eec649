"""Processes that the drill starts: heard line by line, ended by their own handles, whatever state they are in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

END_S = 5.0
LOG_LINES = 6

Said = dict[str, Any]


class Process:
    """`python -m ARGUMENTS`. Each line of JSON that it prints goes to `heard`; its log goes to `log_path`."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        log_path: Path,
        heard: Callable[[Said], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._heard = heard
        # A session of its own: Ctrl-C is for the drill, which ends its processes. No flags from WALCAST_<FLAG>.
        env = {k: v for k, v in os.environ.items() if not k.startswith("WALCAST_")} | dict(environment or {})
        with log_path.open("ab") as log:
            self.log_at = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, name=f"hears {name}", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None  # a pipe, see above
        for line in self._process.stdout:
            with suppress(ValueError):
                self._heard(json.loads(line))

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def tell(self, line: str) -> None:
        """A line on its standard input."""
        assert self._process.stdin is not None  # a pipe, see above
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. A stopped process dies of it, too."""
        self._process.kill()
        self._wait(END_S)

    def finish(self, *, by_signal: bool) -> int | None:
        """End it in an orderly way, or else by SIGKILL: its exit code."""
        if by_signal:
            self._process.send_signal(signal.SIGTERM)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            return self._wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def _wait(self, timeout_s: float) -> int:
        code = self._process.wait(timeout_s)
        self._listener.join(END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        return code

    def last_lines(self) -> list[str]:
        """The end of its log."""
        return self.log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]
