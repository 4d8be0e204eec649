"""A document's commands, typed into one shell in their order, and what it shows of their output.

In an output `…` stands for anything within a line, and a line of its own `…` for any lines. Blank lines and spaces at
the end of lines do not count.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.nodes import PATIENCE_S

ANY = "…"


def lines_of(text: str) -> list[str]:
    """Those that count."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def is_as_shown(shown: str, said: str) -> bool:
    """Is what was said what the document shows?"""
    pattern = ""
    for line in lines_of(shown):
        one = "".join(".*?" if part == ANY else re.escape(part) for part in re.split(f"({ANY})", line))
        pattern += r"(?:.*\n)*?" if line.strip() == ANY else one + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines_of(said))) is not None


def patched(text: str, difference: str) -> str:
    """A file with a unified difference applied: one hunk begins where the file's line is not the next one. ValueError
    for a line that is not there."""
    old, new, at = text.splitlines(), [], 0
    for line in difference.splitlines():
        mark, rest = line[:1], line[1:]
        if line.startswith("@@"):
            continue
        if mark == "+":
            new.append(rest)
            continue
        if mark not in ("-", " ", ""):
            raise ValueError(f"{line!r} is no line of a difference")
        try:
            there = old.index(rest, at)
        except ValueError:
            raise ValueError(f"{rest!r} is not in the file, or not there") from None
        new += old[at:there] + ([rest] if mark != "-" else [])
        at = there + 1
    return "\n".join(new + old[at:]) + "\n"


class Shell:
    """A bash in a folder, as people have it: each command that goes into the background has a process group of its own.
    All are in one session, and end with it. Errors are not seen."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._out = folder.parent / f"{folder.name}.out"
        self._err = folder.parent / f"{folder.name}.err"
        self._count = 0
        self._at = 0
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                ["bash", "--norc"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        self.type("set -m")

    def type(self, text: str) -> str:
        """Some lines: what is to be seen then, once the last one has ended. AssertionError when a command failed."""
        assert self._process.stdin is not None
        self._count += 1
        mark = f"--- {self._count} ended with "
        # The marks come from the shell that runs the commands, so nothing of theirs comes after them.
        typed = f"set -e\n{text}\nset +e\necho '{mark}'0\n"
        self._process.stdin.write(typed.encode())
        self._process.stdin.flush()
        end_s = time.monotonic() + PATIENCE_S
        while mark not in (said := self._out.read_bytes()[self._at :].decode(errors="replace")):
            assert self._process.poll() is None, f"a command failed in:\n{text}\n{said}\n{self._err.read_text()}"
            assert time.monotonic() < end_s, f"does not end:\n{text}\n{said}\n{self._err.read_text()}"
            time.sleep(0.005)
        self._at = self._out.stat().st_size
        return said[: said.index(mark)]

    def end(self) -> None:
        """All of it."""
        assert self._process.stdin is not None
        for pid in _members(self._process.pid):
            if pid != self._process.pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(PATIENCE_S)


def _members(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
    return found


@contextmanager
def shell(folder: Path, environment: dict[str, str]) -> Iterator[Shell]:
    """For a `with`."""
    made = Shell(folder, environment)
    try:
        yield made
    finally:
        made.end()
