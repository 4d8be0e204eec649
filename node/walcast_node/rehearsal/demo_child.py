"""A process of the demo, from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

LOG_LINES = 6


class Child:
    """A process of the demo. `said` is the newest line of JSON it printed; its log goes to a file."""

    def __init__(self, name: str, folder: Path, *arguments: str) -> None:
        self.name = name
        self.said: dict[str, Any] = {}
        self.log_path = folder / f"{name}.log"
        # A session of its own: Ctrl-C is for the demo, which ends its children. No flags from WALCAST_<FLAG>.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WALCAST_")}
        command = [sys.executable, "-P", "-m", *arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None  # a pipe, see above
        for line in self.process.stdout:
            self.said = json.loads(line)

    def tell(self, line: str) -> None:
        """A line on its standard input."""
        assert self.process.stdin is not None  # a pipe, see above
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def ask_to_stop(self) -> None:
        """SIGTERM for walcast, the end of standard input for the others."""
        assert self.process.stdin is not None  # a pipe, see above
        if self.process.poll() is None and "role" in self.said:
            self.process.send_signal(signal.SIGTERM)
        self.process.stdin.close()

    def wait(self, timeout_s: float) -> int:
        """Its exit code, when all that it printed is read; TimeoutExpired."""
        code = self.process.wait(timeout_s)
        self._listener.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def exit_code(self, timeout_s: float) -> int | None:
        """None while it still runs after so long."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.wait(5)

    def last_lines(self) -> list[str]:
        """The end of its log."""
        return self.log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]
