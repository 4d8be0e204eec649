"""Threads for what blocks, where the process may have no more of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class Threads(ThreadPoolExecutor):
    """A pool that does with the threads that it has what it is given, when a further one cannot be started."""

    def _adjust_thread_count(self) -> None:
        # Private to the standard library, and the only place where this can be told: `submit` has queued the work.
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise
