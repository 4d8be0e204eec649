"""Frames → groups: which pages a run of commits changed, each once, in its last version. Pure.

Commits that are captured together become one LTX file: a page written many times is sent once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from walcast.checksum import lock_pgno


@dataclass(frozen=True, slots=True)
class Group:
    """`frame_count` frames that end with a commit: `commits` transactions that leave `commit_pages` database pages.

    `pgnos` (uint32, ascending, none past the end) are the pages they changed, `frames` (intp) the index of each one's
    last frame in the run.
    """

    frame_count: int
    commits: int
    commit_pages: int
    lowest_pages: int
    pgnos: NDArray[np.uint32]
    frames: NDArray[np.intp]


def group(pgnos: NDArray[np.uint32], commits: NDArray[np.uint32]) -> Group | None:
    """Group the frames up to the last commit among them; None when there is none.

    `pgnos` and `commits` are the fields of consecutive frames. What follows the last commit is left for next time.
    """
    ends = np.flatnonzero(commits)
    if not len(ends):
        return None
    count = int(ends[-1]) + 1
    commit_pages = int(commits[count - 1])
    newest_first = pgnos[:count][::-1]
    unique, first = np.unique(newest_first, return_index=True)
    frames = count - 1 - first
    if unique[-1] > commit_pages:
        inside = unique <= commit_pages
        unique, frames = unique[inside], frames[inside]
    lowest = int(commits[ends].min())
    return Group(count, len(ends), commit_pages, lowest, unique.astype(np.uint32), frames)


def unwritten_pages(found: Group, pages_before: int, page_size: int) -> list[int]:
    """Pages that are new in the file after this group though no frame has them, ascending.

    SQLite may grow a file over pages it has no content for (a free page at the end, a file that shrank and grew
    again). A copy must hold the same bytes there, so they are read from the database.
    """
    low = min(pages_before, found.lowest_pages)
    new = found.commit_pages - low
    if new <= 0:
        return []
    begin = int(np.searchsorted(found.pgnos, low, side="right"))
    skip = lock_pgno(page_size)
    expected = new - (low < skip <= found.commit_pages)
    if len(found.pgnos) - begin >= expected:
        return []
    every = np.arange(low + 1, found.commit_pages + 1, dtype=np.uint32)
    missing = np.setdiff1d(every, found.pgnos[begin:])
    return [int(pgno) for pgno in missing if pgno != skip]
