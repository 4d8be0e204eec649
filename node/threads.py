"""A thread pool for blocking work in a process that may have reached its limit of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class Threads(ThreadPoolExecutor):
    """A pool that keeps working with the threads it has when the system refuses another one."""

    def _adjust_thread_count(self) -> None:
        # Private to the standard library, but the only place to catch it: `submit` has already queued the work.
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise
