"""Processes that fetch a restore's files, and decode and write the parts of a large snapshot.

One Python process decodes on one core, and a request costs it a millisecond or more. So larger restores are divided
among some. They are forked, since a fresh interpreter would take longer to start than they save; therefore only where
this process has no other thread, which a fork would leave standing in the middle of something. Each makes connections
of its own. They end with this process, however it ends: their pipe to it breaks.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from walcast.errors import ConfigError, Corrupt, Unavailable, WalcastError
from walcast.restore.pages import Batch
from walcast.restore.parts import Decoded, Divided, decode
from walcast.restore.writer import write_batch
from walcast.store.base import ObjectMissing, Store

WORKERS_MAX = 6
_STOP_S = 5.0
_FORK = "fork"
_PR_SET_PDEATHSIG = 1


class WorkerLost(Exception):
    """A process ended that should not have: somebody, or the kernel for want of memory, killed it."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of an object, to be answered as they are."""

    key: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class PartNumber:
    """A part of the snapshot, to be decoded into the target; the answer is `Decoded`."""

    number: int


Job = Range | PartNumber
Answer = bytes | Decoded | Exception


def can_fork() -> bool:
    """May this process fork, and does it gain anything?"""
    return sys.platform == "linux" and _cores() > 1 and threading.active_count() == 1


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Workers:
    """They run within a `with` statement, do what is submitted in about that order, `requests` at once in all."""

    def __init__(self, store: Store, target: Path, divided: Divided | None, requests: int) -> None:
        self._count = max(1, min(_cores() + 1, WORKERS_MAX, requests))
        self._ahead = max(2, -(-requests // self._count))  # jobs that each has at hand
        self._work = (store, target, divided, self._ahead)
        self._pipes: dict[Connection[Any, Any], int] = {}  # and how many jobs each has at hand
        self._processes: list[Any] = []
        self._jobs: deque[tuple[int, Job]] = deque()

    def __enter__(self) -> Self:
        context: Any = multiprocessing.get_context(_FORK)
        # A terminal sends it to all processes, and the parent decides: in the others it stays blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # Nor may a child collect what the parent left behind: its end may wait for a thread that only the parent has.
        collecting = gc.isenabled()
        gc.disable()
        try:
            with warnings.catch_warnings():
                # Of Python 3.12: about threads that are not Python's, numpy's for one, which sees to it itself.
                warnings.simplefilter("ignore", DeprecationWarning)
                for _ in range(self._count):
                    ours, theirs = context.Pipe()
                    arguments = (theirs, [*self._pipes, ours], *self._work)
                    process = context.Process(target=_serve, args=arguments, daemon=True)
                    process.start()
                    theirs.close()
                    self._pipes[ours] = 0
                    self._processes.append(process)
        except BaseException:
            self.stop()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if collecting:
                gc.enable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes if kind is not None else ():
            process.terminate()
        self.stop()

    def stop(self) -> None:
        """End the processes; harmless when repeated."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_STOP_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._pipes, self._processes = {}, []

    def submit(self, ticket: int, job: Job) -> None:
        """Have it done; `next` answers with the ticket. Raises WorkerLost."""
        self._jobs.append((ticket, job))
        self._hand_out()

    def next(self) -> tuple[int, Answer]:
        """The next answer, whichever it is; an Exception for what failed. Raises WorkerLost."""
        pipe = cast("Connection[Any, Any]", wait([pipe for pipe, jobs in self._pipes.items() if jobs])[0])
        try:
            ticket, answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerLost("a process of the restore ended") from error
        self._pipes[pipe] -= 1
        self._hand_out()
        return ticket, answer.error() if isinstance(answer, _Failure) else answer

    def _hand_out(self) -> None:
        while self._jobs:
            pipe = min(self._pipes, key=self._pipes.__getitem__)
            if self._pipes[pipe] >= self._ahead:
                return
            try:
                pipe.send(self._jobs[0])
            except OSError as error:
                raise WorkerLost("a process of the restore ended") from error
            self._jobs.popleft()
            self._pipes[pipe] += 1


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error on its way through a pipe: errors with fields of their own do not pickle."""

    kind: str
    facts: tuple[Any, ...]

    @classmethod
    def of(cls, error: Exception) -> Self:
        if isinstance(error, ObjectMissing):
            return cls("ObjectMissing", (error.key, error.url))
        if isinstance(error, OSError):
            return cls("OSError", (error.errno, error.strerror))
        kinds = (name for name, kind in _KINDS.items() if isinstance(error, kind))
        return cls(next(kinds, "RuntimeError"), (str(error) or type(error).__name__,))

    def error(self) -> Exception:
        return _KINDS[self.kind](*self.facts)


_KINDS: dict[str, type[Exception]] = {
    "ObjectMissing": ObjectMissing,
    "OSError": OSError,
    "Corrupt": Corrupt,
    "ConfigError": ConfigError,
    "Unavailable": Unavailable,
    "WalcastError": WalcastError,
    "RuntimeError": RuntimeError,
}


def _serve(
    pipe: Connection[Any, Any],
    others: list[Connection[Any, Any]],
    store: Store,
    target: Path,
    divided: Divided | None,
    ahead: int,
) -> None:
    """A worker's life; it ends when the pipe does."""
    gc.freeze()
    gc.enable()
    # With the parent, also while all that this process does is wait for a store.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for other in others:
        other.close()  # else the pipes of the others would not break with the parent
    store.close()  # the parent's connections are the parent's; new ones are made at the first use
    _work(pipe, _Worker(store, target, divided), ahead)


def _work(pipe: Connection[Any, Any], worker: _Worker, ahead: int) -> None:
    """Jobs in, answers out, in order; the bytes of some jobs are fetched ahead.

    Ends the process with the pipe, at once: a thread may be waiting for a store that is silent, and nothing here is the
    child's to tidy up.
    """
    waiting: deque[tuple[int, Job, Future[bytes]]] = deque()
    with ThreadPoolExecutor(ahead, thread_name_prefix="walcast-worker") as pool:
        try:
            while True:
                while not waiting or pipe.poll():
                    ticket, job = pipe.recv()
                    waiting.append((ticket, job, pool.submit(worker.fetch, job)))
                ticket, job, future = waiting.popleft()
                try:
                    answer: Any = worker.finish(job, future.result())
                except Exception as error:  # noqa: BLE001 - the parent raises it
                    answer = _Failure.of(error)
                pipe.send((ticket, answer))
        except (EOFError, OSError):
            os._exit(0)


class _Worker:
    """What is done for a job: bytes are fetched in any thread, and made into its answer in one."""

    def __init__(self, store: Store, target: Path, divided: Divided | None) -> None:
        self._store = store
        self._divided = divided
        self._descriptor = os.open(target, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def fetch(self, job: Job) -> bytes:
        if isinstance(job, Range):
            return self._store.get(job.key, job.start, job.length)
        assert self._divided is not None  # who numbers parts has some
        part = self._divided.parts[job.number]
        return self._store.get(self._divided.file.key, part.start, part.end - part.start)

    def finish(self, job: Job, data: bytes) -> bytes | Decoded:
        if isinstance(job, Range):
            return data
        assert self._divided is not None
        header = self._divided.header

        def write(batch: Batch) -> None:
            write_batch(self._descriptor, header.page_size, batch)

        return decode(header, self._divided.parts[job.number], data, write)
