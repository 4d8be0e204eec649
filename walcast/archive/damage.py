"""What can be wrong with one file of an archive."""

from __future__ import annotations

from typing import Self

from walcast.archive.files import ArchiveFile
from walcast.errors import Corrupt
from walcast.ltx import Header
from walcast.ltx.possible import check_pages
from walcast.position import format_txid


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
    """Raises DamagedFile for a file that has another's name, and for a snapshot of more pages than it can hold."""
    if (header.min_txid, header.max_txid) != (file.min_txid, file.max_txid):
        raise DamagedFile(
            file, f"holds TXIDs {format_txid(header.min_txid)}-{format_txid(header.max_txid)}, not those of its name"
        )
    if header.is_snapshot:
        check_size(header, file, 0)


def check_size(header: Header, file: ArchiveFile, pages_before: int) -> None:
    """Raises DamagedFile when no database of `pages_before` pages can have the announced size after this file."""
    try:
        check_pages(header, file.size, pages_before)
    except ValueError as error:
        raise DamagedFile(file, str(error)) from error
