"""A thread pool for blocking work in a process that may have reached its limit of threads, or has no memory left."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


class Threads(ThreadPoolExecutor):
    """A pool that keeps working with the threads it has when the system refuses another one."""

    def _adjust_thread_count(self) -> None:
        # Private to the standard library, but the only place to catch it: `submit` has already queued the work.
        try:
            super()._adjust_thread_count()
        except (RuntimeError, MemoryError):
            if not self._threads:
                raise

    def start_all(self) -> None:
        """Start all threads, as many as the system gives, while there is memory. Later whoever submits would wait for
        ever for a thread that has none to begin with (`threading.Thread.start`), and an event loop would stand still.
        """
        go_on = threading.Event()
        for _ in range(self._max_workers):
            before = len(self._threads)
            self.submit(go_on.wait)  # keeps the thread, so that the next one needs another
            if len(self._threads) == before:
                break
        go_on.set()
