"""`python -m MODULE`, `python -c CODE` and scripts of `support`, forked from a process that has everything imported:
milliseconds instead of half a second of processor time each. What such a process starts in the same way is forked, too.

For tests of what these processes do; that their commands start in an interpreter of their own is tested elsewhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

from support.forks import PATIENCE_S, Forked, Orders, shared_forks
from support.nodes import ENVIRONMENT

HERE = Path(__file__).parent
MAIN = "warm_main.py"
COMMAND = "walcast"
# For PRELOADED, which `warm_main` looks at: what each region of the example would import for itself.
SITE = "gunicorn.app.wsgiapp gunicorn.workers.gthread examples.flask_app.app"
File = int | IO[Any] | None


def forked_as(command: Sequence[str | Path]) -> tuple[str, list[str]] | None:
    """What a fork server is to run, and its arguments. None for a command that is no Python of this one."""
    program, *rest = map(str, command)
    if Path(program) == Path(sys.executable).with_name(COMMAND):
        return COMMAND, rest
    if program != sys.executable:
        return None
    if rest[:1] == ["-P"]:  # no folder of its own in the path, as it is with a forked one
        rest = rest[1:]
    if rest[:2] == ["-m", "walcast_node.cli"] and rest[2:3] not in (["demo"], ["drill"]):
        return COMMAND, rest[2:]
    if rest and Path(rest[0]).parent == HERE:
        return Path(rest[0]).name, rest[1:]
    return (MAIN, rest) if rest[:1] in (["-m"], ["-c"]) else None


class WarmPopen(Forked):
    """As `subprocess.Popen`, with what is used of it here."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        text: bool = False,
        start_new_session: bool = False,
        pass_fds: Sequence[int] = (),
        orders: Orders | None = None,
    ) -> None:
        what = forked_as(command)
        assert what is not None, f"no `python -m`: {command}"
        environment = dict(os.environ if env is None else env)
        self.args = command
        ends: list[tuple[int, int]] = []  # of pipes, ours and theirs
        opened: list[int] = []
        fds = []
        for number, file in enumerate((stdin, stdout, stderr)):
            if file == subprocess.PIPE:
                reading, writing = os.pipe()
                ours, theirs = (writing, reading) if number == 0 else (reading, writing)
                ends.append((number, ours))
                opened.append(theirs)
            elif file == subprocess.DEVNULL:
                theirs = os.open(os.devnull, os.O_RDWR)
                opened.append(theirs)
            else:
                theirs = number if file is None else file if isinstance(file, int) else file.fileno()
            fds.append(theirs)
        try:
            report = (orders or shared_forks(ENVIRONMENT)).order(
                *what,
                (fds[0], fds[1], fds[2]),
                environment,
                directory=cwd,
                new_session=start_new_session,
                kept=pass_fds,
            )
        finally:
            for fd in opened:
                os.close(fd)
        super().__init__(report)
        kind = "" if text else "b"
        pipes = {number: open(fd, ("r" if number else "w") + kind) for number, fd in ends}  # noqa: SIM115, PTH123
        self.stdin, self.stdout, self.stderr = pipes.get(0), pipes.get(1), pipes.get(2)

    def communicate(self, asked: None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Until it has ended: what it said."""
        said: dict[int, Any] = {}

        def read(number: int, pipe: IO[Any]) -> None:
            said[number] = pipe.read()

        pipes = {number: pipe for number, pipe in ((1, self.stdout), (2, self.stderr)) if pipe}
        readers = [threading.Thread(target=read, args=one, daemon=True) for one in pipes.items()]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(PATIENCE_S)
        for pipe in pipes.values():
            pipe.close()
        return said.get(1), said.get(2)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdout, self.stderr, self.stdin):
            if pipe:
                pipe.close()
        self.wait()


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: str | Path | None = None,
    timeout: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """To its end, or to SIGKILL when it takes too long."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = WarmPopen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=env)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess([*map(str, command)], code, out.read(), err.read())
