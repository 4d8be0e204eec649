"""Reading the files of an archive: their headers, all their events, the pages of several. Raises DamagedFile.

Everything that names a file's TXIDs is compared with its name before it is handed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from walcast.archive.damage import DamagedFile, check_header
from walcast.archive.files import ArchiveFile
from walcast.errors import Corrupt
from walcast.ltx import HEADER_SIZE, Decoder, Header, Page, Trailer
from walcast.store.base import ObjectMissing, Store

_THREADS = 16


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


def read_headers(store: Store, files: Sequence[ArchiveFile]) -> Iterator[Header | DamagedFile | ObjectMissing]:
    """The headers of all these, in order, several at a time; or why there is none."""

    def read(file: ArchiveFile) -> Header | DamagedFile | ObjectMissing:
        try:
            return read_header(store, file)
        except (DamagedFile, ObjectMissing) as error:
            return error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="walcast-headers") as pool:
        yield from pool.map(read, files)


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
    try:
        for chunk in store.chunks(file.key):
            decoder.feed(chunk)
            while (event := decoder.next_event()) is not None:
                if isinstance(event, Header):
                    check_header(event, file)
                if isinstance(event, Trailer):
                    trailer = event
                else:
                    yield event
        decoder.close()
    except DamagedFile:
        raise
    except Corrupt as error:
        raise DamagedFile(file, str(error)) from error
    if decoder.unused:
        raise DamagedFile(file, "more bytes after the trailer")
    yield trailer
