"""What the archive does not have and the log has no more: the numbers of the pages, so that they can be sent later.

While the store is away the log stays inside its bound, so its oldest segments go before they were archived. Of each the
page numbers are noted first: one bit a page. When the store is back, the pages noted, as they are then, and what is
left of the log take the archive from where it is to now, as one file. Only moments in between cannot be restored.

The file `archived` in the state folder says where the archive is, and, while segments were trimmed unarchived, how far
and which pages. A note is durable before its segment is deleted. Both ends of it are positions, checksum included, so
that a note of another archive or of a log that was lost connects with nothing.

    magic "WALCASTN" · where the archive is: TXID u64, checksum u64 · noted up to: TXID u64, checksum u64, 0: nothing ·
    CRC-32 u32 of all else     big-endian, then one bit a page number, from 0
"""

from __future__ import annotations

import logging
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.errors import Corrupt
from walcast.filesystem import write_durably
from walcast.position import Position
from walcast_primary.transaction_log.segment import Entry, Segment
from walcast_primary.transaction_log.transaction_log import Known, TransactionLog

log = logging.getLogger("walcast.archive")

NAME = "archived"

_HEADER = struct.Struct(">8sQQQQI")
_MAGIC = b"WALCASTN"
_TAIL_BYTES = 64
_NOTHING: NDArray[np.bool_] = np.zeros(0, np.bool_)


class Unarchived:
    """The notes of one database and one archive. `note` is called by the thread that trims, the rest by another."""

    def __init__(self, directory: Path, log: TransactionLog) -> None:
        self._path = directory / NAME
        self._log = log
        self._lock = threading.Lock()
        self.archived = Position()
        self._noted = Position()
        self._pages = _NOTHING
        self._load()
        log.before_trim = self.note

    # The archive's thread

    def begin(self, archived: Position, position: Position, pages: NDArray[np.uint32]) -> None:
        """The log begins at `position`, and the archive, at `archived`, misses `pages`."""
        with self._lock:
            self.archived, self._noted, self._pages = archived, position, _NOTHING
            self._add(pages)
            self._save(durable=True)

    def move(self, position: Position, *, continued: bool) -> None:
        """The archive is at `position`; `continued`: by files that go on from where it was, not by a snapshot.

        Not synced: an older position in the file only costs a snapshot.
        """
        with self._lock:
            durable = bool(self._noted)
            if not continued or self._noted.txid <= position.txid:
                self._noted, self._pages = Position(), _NOTHING
            self.archived = position
            self._save(durable=durable)

    def connects(self, position: Position) -> bool:
        """Can `changed_since_archived` say what changed after an archive's `position`?"""
        with self._lock:
            return bool(self._noted) and position == self.archived and self._log.knows(self._noted) is Known.YES

    def changed_since_archived(self, until_txid: int) -> NDArray[np.uint32] | None:
        """The pages that changed after the archive's position, up to `until_txid`, ascending: those noted and those in
        the log. None when the log was trimmed beyond the notes meanwhile: ask again. Corrupt when it cannot be read."""
        with self._lock:
            txid, noted = self._noted.txid, np.flatnonzero(self._pages)
        found = [noted.astype(np.uint32)]
        while txid < until_txid:
            entry = self._log.after(txid)
            if entry is None:
                return None
            found.append(_pgnos(entry))
            txid = entry.max_txid
        return np.unique(np.concatenate(found))

    # The capture's thread

    def note(self, segment: Segment) -> None:
        """A segment of the log is about to be deleted."""
        with self._lock:
            try:
                self._note(segment)
            except (OSError, Corrupt) as error:
                # Trimming must go on, on a full disk above all; the archive will need a snapshot then.
                log.warning("cannot note what the archive misses", extra={"error": str(error)})
                self._forget()

    def _note(self, segment: Segment) -> None:
        if not len(segment) or not self.archived:
            return
        reached = max(self.archived.txid, self._noted.txid)
        if segment.max_txids[-1] <= reached:
            return
        if segment.min_txids[0] > reached + 1:
            self._forget()
            return
        for index in range(len(segment)):
            if segment.max_txids[index] > reached:
                self._add(_pgnos(segment.entry(index)))
        self._noted = segment.entry(-1).position
        self._save(durable=True)

    def _forget(self) -> None:
        self._noted, self._pages, self.archived = Position(), _NOTHING, Position()
        self._path.unlink(missing_ok=True)

    def _add(self, pgnos: NDArray[np.uint32]) -> None:
        size = int(pgnos.max(initial=0)) + 1
        if size > len(self._pages):
            self._pages = np.concatenate((self._pages, np.zeros(size - len(self._pages) + 4096, np.bool_)))
        self._pages[pgnos] = True

    # The file

    def _save(self, *, durable: bool) -> None:
        bits = np.packbits(self._pages).tobytes()
        at, to = self.archived, self._noted
        fields = (_MAGIC, at.txid, at.checksum, to.txid, to.checksum)
        crc = zlib.crc32(bits, zlib.crc32(_HEADER.pack(*fields, 0)[:-4]))
        data = _HEADER.pack(*fields, crc) + bits
        if not durable and self._path.exists():
            with self._path.open("r+b") as file:  # once a second: no new file, no flush that a rename would cause
                file.write(data)
            return
        write_durably(self._path, data)

    def _load(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        if len(data) < _HEADER.size:
            return
        magic, txid, checksum, noted_txid, noted_checksum, crc = _HEADER.unpack_from(data)
        bits = data[_HEADER.size :]
        if magic != _MAGIC or crc != zlib.crc32(bits, zlib.crc32(data[: _HEADER.size - 4])):
            return
        noted = Position(noted_txid, noted_checksum)
        if noted and self._log.knows(noted) is not Known.YES:
            return  # of a log that is no more
        self.archived, self._noted = Position(txid, checksum), noted
        self._pages = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.bool_)


def _pgnos(entry: Entry) -> NDArray[np.uint32]:
    """The pages in an entry, from its page index, which must fit the entry: Corrupt."""
    size = ltx.page_index_size(entry.read(max(0, entry.size - _TAIL_BYTES)))
    if size > entry.size:
        raise Corrupt(f"{entry.segment.path}: the page index of TXID {entry.max_txid} is longer than its entry")
    index = ltx.decode_page_index(entry.read(entry.size - size))
    pgnos = np.fromiter(index, np.uint32, len(index))
    end = sum(next(reversed(index.values()), (ltx.HEADER_SIZE, 0)))
    if end + ltx.PAGE_HEADER_SIZE + size != entry.size or pgnos.max(initial=0) > entry.header().commit_pages:
        raise Corrupt(f"{entry.segment.path}: the page index of TXID {entry.max_txid} does not fit its entry")
    return pgnos
