"""A replica of a source, and what its bytes are."""

from __future__ import annotations

from pathlib import Path

from support.apply_source import Source

from walcast.checksum import PageChecksums
from walcast.dbfiles import PageReader
from walcast_follower.apply.applier import Applier


def replica_of(source: Source, tmp_path: Path) -> Applier:
    """Of the source's first state; that position is not known to it."""
    return Applier.open(source.copy_to(tmp_path / "replica" / "app.db"), tmp_path / "state")


def scan(applier: Applier) -> int:
    """The database checksum, from the pages."""
    with applier_reader(applier) as reader:
        return PageChecksums.scan(applier.page_size, reader.chunks()).database


def applier_reader(applier: Applier) -> PageReader:
    return PageReader(applier._files, applier._connections[0])


def pages_of(applier: Applier, *pgnos: int) -> list[bytes]:
    with applier_reader(applier) as reader:
        return [bytes(reader.read(pgno, 1)) for pgno in pgnos]


def finish(applier: Applier) -> bytes:
    """All into the database file, no reader being there; the file's bytes."""
    path = applier.path
    assert applier.checkpoint().complete
    applier.close()
    return path.read_bytes()
