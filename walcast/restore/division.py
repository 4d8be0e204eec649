"""A restore divided among processes: the parts of a large snapshot first, behind them the pieces of the next files.

Whether a snapshot is damaged is for one process to say that reads it in order. So whatever is wrong with its parts, and
with the processes, is `NotDivided`, and the caller does it alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from walcast.archive.damage import DamagedFile, check_header
from walcast.archive.files import ArchiveFile
from walcast.errors import Corrupt
from walcast.ltx import HEADER_SIZE, Header
from walcast.ltx.body import PAGE_FLAG_SIZE, PREFIX
from walcast.ltx.possible import TAIL_BYTES, check_tail
from walcast.restore.download import pieces_of, window_bytes
from walcast.restore.parts import Decoded, Divided, cut, finish
from walcast.restore.workers import Answer, PartNumber, Range, WorkerLost, Workers, can_fork
from walcast.restore.writer import Writer
from walcast.store.base import Store

DIVIDE_BYTES = 64 << 20
DIVIDE_FILES = 256


class NotDivided(Exception):
    """It did not work; the target may hold some pages of the next file."""


def is_worth_it(plan: Sequence[ArchiveFile], requests: int) -> bool:
    """Is the plan large enough to divide it, and can this process?"""
    large = len(plan) >= DIVIDE_FILES or sum(file.size for file in plan) >= DIVIDE_BYTES
    return large and requests > 1 and can_fork()


def divide(store: Store, file: ArchiveFile) -> Divided | None:
    """A snapshot's parts; None for one that is small, or that has to be read in order.

    Three small requests. Raises what the store raises.
    """
    if file.size < DIVIDE_BYTES:
        return None
    head = store.get(file.key, 0, HEADER_SIZE + PREFIX.size)
    last = store.get(file.key, file.size - TAIL_BYTES, TAIL_BYTES)
    try:
        header = Header.decode(head)
        if header is None or not header.is_snapshot or PREFIX.unpack_from(head, HEADER_SIZE)[1] != PAGE_FLAG_SIZE:
            return None  # pages as LZ4 frames, as older Litestreams wrote them, do not say how long they are
        check_header(header, file)
        size = check_tail(header, file.size, last)
        tail = store.get(file.key, file.size - size, size)
        return Divided(file, header, head, cut(header, file.size, tail), tail)
    except Corrupt:
        return None  # it will be found again, and named


class Division:
    """What is in the workers' hands: the parts of a snapshot, if there is one, and pieces of the files after it."""

    def __init__(self, workers: Workers, divided: Divided | None, files: Sequence[ArchiveFile], requests: int) -> None:
        self._workers = workers
        self._divided = divided
        self._parts = len(divided.parts) if divided else 0
        self._free_bytes = window_bytes(requests)
        self._left = enumerate(pieces_of(files), self._parts)
        self._waiting: deque[tuple[int, tuple[ArchiveFile, int, int]]] = deque()
        self._ready: dict[int, Answer] = {}
        try:
            for number in range(self._parts):
                workers.submit(number, PartNumber(number))
            self._fill()
        except WorkerLost as error:
            raise NotDivided(str(error)) from error

    def apply_parts(self, writer: Writer, fetched: Callable[[int], None]) -> None:
        """Have the snapshot written to the target, and tell `writer` of a proven file.

        `fetched` is called with bytes. Raises NotDivided, Contradiction, and what the store and the target raise.
        """
        divided = self._divided
        if divided is None:
            return
        crcs: dict[int, int] = {}
        writer.file = divided.file
        try:
            while len(crcs) < self._parts:
                number, answer = self._workers.next()
                if isinstance(answer, Decoded):
                    part = divided.parts[number]
                    crcs[number] = answer.crc
                    writer.note(divided.header, part.pgnos, answer.sums)
                    fetched(part.end - part.start)
                elif number < self._parts:
                    assert isinstance(answer, Exception)  # a part has no other answers
                    raise answer
                else:
                    self._ready[number] = answer
            trailer = finish(divided, [crcs[number] for number in range(self._parts)])
        except (Corrupt, WorkerLost) as error:
            raise NotDivided(str(error)) from error
        fetched(divided.file.size - sum(part.end - part.start for part in divided.parts))
        writer.file_done(divided.header, trailer, sum(len(part.pgnos) for part in divided.parts))

    def pieces(self) -> Iterator[tuple[ArchiveFile, bytes, bool]]:
        """As those of `downloading`. Raises NotDivided, too."""
        while self._waiting:
            ticket, (file, start, length) = self._waiting.popleft()
            data = self._answer(ticket)
            if len(data) != length:
                raise DamagedFile(file, f"ends at byte {start + len(data)} of {file.size}")
            yield file, data, start + length >= file.size
            self._free_bytes += length
            try:
                self._fill()
            except WorkerLost as error:
                raise NotDivided(str(error)) from error

    def _answer(self, ticket: int) -> bytes:
        try:
            while ticket not in self._ready:
                other, answer = self._workers.next()
                self._ready[other] = answer
        except WorkerLost as error:
            raise NotDivided(str(error)) from error
        answer = self._ready.pop(ticket)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)  # what a Range is answered with
        return answer

    def _fill(self) -> None:
        while self._free_bytes > 0 and (following := next(self._left, None)) is not None:
            ticket, (file, start, length) = following
            self._free_bytes -= length
            self._waiting.append(following)
            self._workers.submit(ticket, Range(file.key, start, length))
