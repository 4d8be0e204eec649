"""The history checker: every state that a reader saw is exactly one commit of the primary, and no reader went back.

Pure: lists of observations in, violations out. Histories are files of lines `seq total digest`; a line that begins with
`!` is something that a reader reported by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from support.e2e_state import TOTAL, Observation

__all__ = ["Observation", "check", "read_commits", "read_history"]


def read_history(file: Path) -> list[Observation | str]:
    """What was recorded so far; a line that is only half there is not yet recorded."""
    found: list[Observation | str] = []
    for line in file.read_text().split("\n")[:-1]:
        if line.startswith("!"):
            found.append(line)
        else:
            seq, total, digest = line.split()
            found.append(Observation(int(seq), int(total), digest))
    return found


def read_commits(*files: Path) -> list[Observation]:
    """Every commit that the writers recorded."""
    return [o for file in files for o in read_history(file) if isinstance(o, Observation)]


def check(
    commits: Iterable[Observation], readers: Mapping[str, Sequence[Observation | str]], total: int = TOTAL
) -> list[str]:
    """What is wrong; nothing when every reader saw commits only, one after the other."""
    wrong: list[str] = []
    digests: dict[int, str] = {}
    for commit in commits:
        if digests.setdefault(commit.seq, commit.digest) != commit.digest:
            wrong.append(f"writers: two commits have the number {commit.seq}")
    for name, seen in readers.items():
        newest = -1
        for state in seen:
            if isinstance(state, str):
                wrong.append(f"{name}: {state}")
                continue
            if state.seq not in digests:
                wrong.append(f"{name}: saw commit {state.seq}, which nobody made")
            elif digests[state.seq] != state.digest:
                wrong.append(f"{name}: what it saw as commit {state.seq} is not what was committed")
            if state.total != total:
                wrong.append(f"{name}: at commit {state.seq} the sum is {state.total}")
            if state.seq < newest:
                wrong.append(f"{name}: went back from commit {newest} to {state.seq}")
            newest = max(newest, state.seq)
    return wrong
