"""The app that a node starts with `--exec`: one command without a shell, as Litestream runs it.

The node's signals go to the app; when the app ends, whoever waits for `ended` goes on. An app that was told to end and
does not within its time is killed, so that what it committed can still be archived before the container's own limit.
When the node itself is killed the app gets SIGTERM (`app_launcher.py`): what it went on to commit nobody would archive.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from walcast.errors import ConfigError
from walcast_node.process.event_loop import BY_SIGNAL

log = logging.getLogger("walcast.node")

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGTERM, signal.SIGINT)
TERM_SHARE = 0.5  # of the time an app has after Ctrl-C, which may not have gone to it
LAUNCHER = Path(__file__).with_name("app_launcher.py")


def split_command(text: str) -> list[str]:
    """The command and its arguments, as a shell would divide them. ConfigError when there is nothing to run."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--exec: {error}") from error  # the command may have a password
    if not arguments:
        raise ConfigError("--exec: give the command that starts the app")
    if shutil.which(arguments[0]) is None:
        raise ConfigError(f"--exec: no program {arguments[0]!r} in PATH; for a shell's syntax give sh -c '…'")
    return arguments


class AppProcess:
    """Used in one event loop. `code` is the app's exit code once it has `ended`."""

    def __init__(self, arguments: list[str], kill_after_s: float) -> None:
        self.arguments = arguments
        self.code: int | None = None
        self.ended = asyncio.Event()
        self._kill_after_s = kill_after_s
        self._process: subprocess.Popen[bytes] | None = None
        self._handle = -1
        self._killing: asyncio.TimerHandle | None = None
        self._asked_s = math.inf

    @property
    def running(self) -> bool:
        """Was it started, and has it not ended?"""
        return self._process is not None and self.code is None

    def pids(self) -> list[int]:
        """Of the app, once it was started."""
        return [] if self._process is None else [self._process.pid]

    def start(self) -> None:
        """ConfigError when the program cannot be run. Starting it once more does nothing."""
        if self._process is not None:
            return
        # By the thread of the event loop, which ends with the process: the launcher is told of that thread's end.
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())] if sys.executable else []
        try:
            self._process = subprocess.Popen([*launch, *self.arguments])
        except OSError as error:
            raise ConfigError(f"--exec: {self.arguments[0]}: {error.strerror}") from error
        self._handle = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._handle, self._reap)
        log.info("started the app", extra={"command": self.arguments[0], "pid": self._process.pid})

    def forward(self, number: signal.Signals) -> bool:
        """Send it a signal that this process was sent; False when no app is running. After a signal that asks it to end
        its time runs."""
        if not self.running:
            return False
        loop = asyncio.get_running_loop()
        from_terminal = number is signal.SIGINT and _is_from_terminal()
        if not from_terminal:
            self._send(number)
        if number in ENDING and self._killing is None:
            self._asked_s = time.monotonic()
            self._killing = loop.call_later(self._kill_after_s, self._kill)
            if from_terminal:  # Ctrl-C went to the app, too; what `docker stop` sends to this process alone did not
                loop.call_later(self._kill_after_s * TERM_SHARE, self._terminate)
        return True

    @property
    def ending_s(self) -> float:
        """For how long it has been asked to end; 0 when nobody has."""
        return max(0.0, min(time.monotonic() - self._asked_s, self._kill_after_s))

    def end(self) -> None:
        """Ask it to end, because this node cannot go on."""
        self.forward(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def _terminate(self) -> None:
        if self.running:
            log.info("the app has not ended since SIGINT: sending it SIGTERM")
            self._send(signal.SIGTERM)

    def _kill(self) -> None:
        if self.running:
            facts = {"seconds": self._kill_after_s}
            log.warning("the app does not end in its time: killing it, to archive what it committed", extra=facts)
            self._send(signal.SIGKILL)

    def _reap(self) -> None:
        assert self._process is not None
        code = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        if self._killing is not None:
            self._killing.cancel()
        self.code = code if code >= 0 else BY_SIGNAL - code
        log.info("the app has ended", extra={"exit_code": self.code})
        self.ended.set()


def _is_from_terminal() -> bool:
    """Is this process in the foreground of a terminal, whose Ctrl-C goes to the app as well?"""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False
