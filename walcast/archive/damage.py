"""What can be wrong with one file of an archive."""

from __future__ import annotations

from typing import Self

from walcast.archive.files import ArchiveFile
from walcast.errors import Corrupt
from walcast.ltx import Header
from walcast.ltx.possible import check_pages
from walcast.moment import TIMESTAMP_MAX_MS
from walcast.position import format_txid
from walcast.terms import TERM_MAX, is_plausible_term


class DamagedFile(Corrupt):
    """A file of the archive is not what it must be."""

    def __init__(self, file: ArchiveFile, what: str) -> None:
        super().__init__(f"{file.key}: {what}")
        self.file = file
        self.what = what

    def retold(self, more: str) -> Self:
        """The same error with more to say."""
        return type(self)(self.file, self.what + more)


class Contradiction(DamagedFile):
    """Files that are each whole in themselves do not belong to one database: one of `suspects` is another's.

    `file` is where it showed; `suspects` holds it too, the likeliest first.
    """

    def __init__(self, file: ArchiveFile, what: str, suspects: tuple[ArchiveFile, ...]) -> None:
        super().__init__(file, what)
        self.suspects = suspects

    def retold(self, more: str) -> Self:
        """The same error with more to say."""
        return type(self)(self.file, self.what + more, self.suspects)


def check_header(header: Header, file: ArchiveFile) -> None:
    """Raises DamagedFile for a file that has another's name, for a term or a time that no transaction can have, and for
    a snapshot of more pages than it can hold."""
    if (header.min_txid, header.max_txid) != (file.min_txid, file.max_txid):
        raise DamagedFile(
            file, f"holds TXIDs {format_txid(header.min_txid)}-{format_txid(header.max_txid)}, not those of its name"
        )
    if header.term > TERM_MAX:
        raise DamagedFile(file, f"is of term {header.term:,}, and none above {TERM_MAX:,} is believed")
    if not 0 <= header.timestamp_ms <= TIMESTAMP_MAX_MS:
        raise DamagedFile(file, f"was made at {header.timestamp_ms} ms since 1970, which is no time")
    if header.is_snapshot:
        check_size(header, file, 0)


def check_seen_term(term: int, seen: int, file: ArchiveFile) -> None:
    """Raises DamagedFile for a term that cannot have begun when a replica's state is of term `seen`: one that took it
    would follow no honest primary ever again."""
    if not is_plausible_term(term, max(seen, 1)):  # 0: no promotion yet, which is no reason to believe more
        raise DamagedFile(file, f"is of term {term:,}, and the newest one that this replica has seen is {seen:,}")


def check_size(header: Header, file: ArchiveFile, pages_before: int) -> None:
    """Raises DamagedFile when no database of `pages_before` pages can have the announced size after this file."""
    try:
        check_pages(header, file.size, pages_before)
    except ValueError as error:
        raise DamagedFile(file, str(error)) from error
