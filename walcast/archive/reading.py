"""Reading the files of an archive: their headers, all their events, the pages of several. Raises DamagedFile.

Everything that names a file's TXIDs is compared with its name before it is handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from walcast.archive.damage import DamagedFile, check_header, check_size
from walcast.archive.files import ArchiveFile
from walcast.errors import Corrupt
from walcast.ltx import HEADER_SIZE, Decoder, Header, Page, Trailer
from walcast.ltx.possible import TAIL_BYTES, check_tail, pages_max
from walcast.store.base import ObjectMissing, Store

_THREADS = 16
_AHEAD = 1024

T = TypeVar("T")


def read_header(store: Store, file: ArchiveFile) -> Header:
    """A file's first 100 bytes. DamagedFile for what is not the header of this file, ObjectMissing."""
    head = store.get(file.key, 0, HEADER_SIZE)
    try:
        header = Header.decode(head)
    except Corrupt as error:
        raise DamagedFile(file, str(error)) from error
    if header is None:
        raise DamagedFile(file, f"has only {len(head)} bytes")
    check_header(header, file)
    return header


def read_ends(store: Store, file: ArchiveFile) -> Header:
    """The header, and a look at the file's end, which one that was cut off, or is something else, has not. Two small
    requests that find out most of what can be wrong. DamagedFile, ObjectMissing."""
    header = read_header(store, file)
    tail = store.get(file.key, max(0, file.size - TAIL_BYTES), TAIL_BYTES)
    try:
        check_tail(header, file.size, tail)
    except Corrupt as error:
        raise DamagedFile(file, str(error)) from error
    return header


def announced_bytes(store: Store, plan: Sequence[ArchiveFile]) -> int:
    """How large the database of a plan is, as the header of its last file says. DamagedFile when the files of the plan
    cannot make one so large, ObjectMissing."""
    header = first = read_header(store, plan[0])
    if len(plan) > 1:
        header = read_header(store, plan[-1])
        most = first.commit_pages + sum(pages_max(header.page_size, file.size) for file in plan[1:-1])
        check_size(header, plan[-1], most)
    return header.commit_pages * header.page_size


def read_headers(store: Store, files: Sequence[ArchiveFile]) -> Iterator[Header | DamagedFile | ObjectMissing]:
    """The headers of all these, in order, several at a time; or why there is none."""

    def read(file: ArchiveFile) -> Header | DamagedFile | ObjectMissing:
        try:
            return read_header(store, file)
        except (DamagedFile, ObjectMissing) as error:
            return error

    yield from _several(read, files)


def check_all_ends(store: Store, files: Sequence[ArchiveFile]) -> list[ArchiveFile]:
    """Which of these are damaged, as far as `read_ends` tells, several at a time."""

    def is_damaged(file: ArchiveFile) -> bool:
        try:
            read_ends(store, file)
        except DamagedFile:
            return True
        except ObjectMissing:
            pass
        return False

    return [file for file, damaged in zip(files, _several(is_damaged, files), strict=True) if damaged]


def _several(work: Callable[[ArchiveFile], T], files: Sequence[ArchiveFile]) -> Iterator[T]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="walcast-headers") as pool:
        for start in range(0, len(files), _AHEAD):  # the pool would take all of them at once
            yield from pool.map(work, files[start : start + _AHEAD])


def pages_after(store: Store, plan: Sequence[ArchiveFile]) -> Iterator[tuple[Header, Iterator[Page]]]:
    """The files of a plan, decoded in order and in bounded memory.

    A file's pages are proven when its iterator has ended without an error; one left unfinished is read to its end.
    """
    for file in plan:
        events = file_events(store, file)
        header = next(events)
        assert isinstance(header, Header)  # `file_events` begins with it
        pages = (event for event in events if isinstance(event, Page))
        yield header, pages
        for _ in pages:
            pass


def file_events(store: Store, file: ArchiveFile) -> Iterator[Header | Page | Trailer]:
    """A file from its header to its trailer, in bounded memory; proven once the trailer has come.

    Raises DamagedFile, ObjectMissing, and whatever else the store raises.
    """
    decoder = Decoder()
    fed = 0
    try:
        for chunk in store.chunks(file.key):
            decoder.feed(chunk)
            fed += len(chunk)
            if fed > file.size:
                raise DamagedFile(file, f"has more than the {file.size:,} bytes that it was listed with")
            while (event := decoder.next_event()) is not None:
                if isinstance(event, Header):
                    check_header(event, file)
                if isinstance(event, Trailer):
                    trailer = event
                else:
                    yield event
            if decoder.unused:
                raise DamagedFile(file, "more bytes after the trailer")
        decoder.close()
    except DamagedFile:
        raise
    except Corrupt as error:
        raise DamagedFile(file, str(error)) from error
    yield trailer
