"""The header of an LTX file, the sizes of its parts, and its name."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Self, TypeAlias

from walcast.errors import Corrupt
from walcast.position import CHECKSUM_FLAG, format_txid

MAGIC = b"LTX1"
HEADER_SIZE = 100
PAGE_HEADER_SIZE = 6
TRAILER_SIZE = 16
FLAG_NO_CHECKSUM = 1 << 1

Buffer: TypeAlias = bytes | bytearray | memoryview

_HEADER = struct.Struct(">4sIIIQQqQqqIIQQIII")
_PAGE_SIZES = frozenset(1 << n for n in range(9, 17))
_FILENAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


def format_filename(min_txid: int, max_txid: int) -> str:
    """The name of a file in an archive."""
    return f"{format_txid(min_txid)}-{format_txid(max_txid)}.ltx"


def parse_filename(name: str) -> tuple[int, int]:
    """Min and max TXID. Raises ValueError for anything `format_filename` does not answer for some file."""
    match = _FILENAME.fullmatch(name)
    if match is None or not 0 < int(match[1], 16) <= int(match[2], 16):
        raise ValueError(f"not the name of an LTX file: {name!r}")
    return int(match[1], 16), int(match[2], 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 100 bytes of a file; the last three fields are walcast's own."""

    page_size: int
    commit_pages: int
    min_txid: int
    max_txid: int
    timestamp_ms: int
    pre_checksum: int = 0
    flags: int = 0
    wal_offset: int = 0
    wal_size: int = 0
    wal_salt: tuple[int, int] = (0, 0)
    node_id: int = 0
    database_checksum: int = 0  # after the file is applied; 0: not known. For files with FLAG_NO_CHECKSUM
    term: int = 0
    wal_cksum: tuple[int, int] = (0, 0)

    @property
    def is_snapshot(self) -> bool:
        """Does the file hold the whole database?"""
        return self.min_txid == 1

    @property
    def no_checksum(self) -> bool:
        """Are the pre- and post-apply checksums left out?"""
        return bool(self.flags & FLAG_NO_CHECKSUM)

    def validate(self) -> None:
        """Raises ValueError for what Litestream would refuse, and for a database checksum that cannot be one."""
        if self.page_size not in _PAGE_SIZES:
            raise ValueError(f"page size {self.page_size}")
        if self.flags & ~FLAG_NO_CHECKSUM:
            raise ValueError(f"unknown flags {self.flags:#x}")
        if not 0 < self.min_txid <= self.max_txid:
            raise ValueError(f"TXIDs from {self.min_txid} to {self.max_txid}")
        if self.wal_offset < 0 or self.wal_size < 0:
            raise ValueError(f"WAL offset {self.wal_offset}, size {self.wal_size}")
        if self.wal_offset == 0 and (self.wal_size or any(self.wal_salt)):
            raise ValueError("WAL size or salt without a WAL offset")
        if self.is_snapshot or self.no_checksum:
            if self.pre_checksum:
                raise ValueError("pre-apply checksum where there can be none")
        elif not self.pre_checksum & CHECKSUM_FLAG:
            raise ValueError(f"pre-apply checksum {self.pre_checksum:016x} without its top bit")
        if self.database_checksum and not self.database_checksum & CHECKSUM_FLAG:
            raise ValueError(f"database checksum {self.database_checksum:016x} without its top bit")

    def encode(self) -> bytes:
        """100 bytes. Raises ValueError for a header that `decode` would refuse."""
        self.validate()
        try:
            return _HEADER.pack(
                MAGIC,
                self.flags,
                self.page_size,
                self.commit_pages,
                self.min_txid,
                self.max_txid,
                self.timestamp_ms,
                self.pre_checksum,
                self.wal_offset,
                self.wal_size,
                *self.wal_salt,
                self.node_id,
                self.database_checksum,
                self.term,
                *self.wal_cksum,
            )
        except struct.error as error:
            raise ValueError(f"a field out of range: {error}") from error

    @classmethod
    def decode(cls, data: Buffer) -> Self | None:
        """From the beginning of a file; None with fewer than 100 bytes. Raises Corrupt."""
        if len(data) < HEADER_SIZE:
            return None
        fields = _HEADER.unpack_from(data)
        if fields[0] != MAGIC:
            raise Corrupt(f"LTX file, byte 0: not an LTX file: begins with {fields[0].hex()}")
        header = cls(
            flags=fields[1],
            page_size=fields[2],
            commit_pages=fields[3],
            min_txid=fields[4],
            max_txid=fields[5],
            timestamp_ms=fields[6],
            pre_checksum=fields[7],
            wal_offset=fields[8],
            wal_size=fields[9],
            wal_salt=fields[10:12],
            node_id=fields[12],
            database_checksum=fields[13],
            term=fields[14],
            wal_cksum=fields[15:17],
        )
        try:
            header.validate()
        except ValueError as error:
            raise Corrupt(f"LTX file, byte 0: header: {error}") from error
        return header
