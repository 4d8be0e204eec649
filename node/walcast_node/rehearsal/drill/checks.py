"""What is compared when nobody writes: the copies, what was kept of what was lost, and what the archive restores to."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from walcast import ltx
from walcast.discarded import Discarded, list_discarded, rebuild
from walcast.errors import WalcastError
from walcast.position import Position
from walcast.restore import restore
from walcast.store import Store
from walcast_node.rehearsal.drill import sql
from walcast_node.rehearsal.drill.nodes import Node

_TOKEN = re.compile(rb"drill-row-(\d{10})")
READ_BYTES = 1 << 20


def digests(nodes: dict[str, Node]) -> dict[str, str]:
    """What stock SQLite reads of each copy, as a hash."""
    with ThreadPoolExecutor(len(nodes)) as threads:
        return dict(zip(nodes, threads.map(lambda node: sql.digest(node.database), nodes.values()), strict=True))


def integrity(nodes: dict[str, Node]) -> dict[str, str]:
    """What integrity_check says of each."""
    with ThreadPoolExecutor(len(nodes)) as threads:
        return dict(zip(nodes, threads.map(lambda node: sql.integrity(node.database), nodes.values()), strict=True))


@dataclass(slots=True)
class Kept:
    """Of lost rows: the numbers that were found, in which folders; `proven` were read from a database rebuilt there."""

    found: set[int] = field(default_factory=set)
    proven: set[int] = field(default_factory=set)
    folders: list[Discarded] = field(default_factory=list)


def folders(nodes: dict[str, Node]) -> dict[Path, Discarded]:
    """All that was ever kept."""
    return {kept.path: kept for node in nodes.values() for kept in list_discarded(node.database)}


def find_kept(lost: set[int], candidates: list[Discarded], store: Store) -> Kept:
    """Which of the lost rows are in these folders: read from the kept pages, and where the archive has the state that
    they apply to, from the database that the two make."""
    kept = Kept()
    for folder in candidates:
        found = rows_in(folder.path) & lost
        if found:
            kept.found |= found
            kept.folders.append(folder)
            kept.proven |= _rebuilt(folder, store) & lost
    return kept


def rows_in(folder: Path) -> set[int]:
    """Numbers of the rows whose text is in the pages of a kept folder."""
    return {int(match[1]) for page in _pages(folder) for match in _TOKEN.finditer(page)}


def _pages(folder: Path) -> Iterator[bytes]:
    for file in sorted(folder.glob("*.ltx")):
        decoder = ltx.Decoder()
        with file.open("rb") as source:
            while data := source.read(READ_BYTES):
                decoder.feed(data)
                while (event := decoder.next_event()) is not None:
                    if isinstance(event, ltx.Page):
                        yield bytes(event.data)


def _rebuilt(folder: Discarded, store: Store) -> set[int]:
    """The rows of the database that the folder's summary tells how to make; none where it cannot be made."""
    with tempfile.TemporaryDirectory(prefix="walcast-drill-") as temporary:
        base, old = Path(temporary) / "base.db", Path(temporary) / "old.db"
        try:
            facts = json.loads((folder.path / "summary.json").read_bytes())
            restore(store, base, txid=Position.parse(facts["base"]).txid)
            rebuild(folder.path, base, old)
        except (WalcastError, OSError, ValueError, KeyError):
            return set()
        return sql.numbers(old)


def restored_digest(store: Store, folder: Path) -> str:
    """What the archive restores to. WalcastError when it does not."""
    target = folder / "restored.db"
    target.unlink(missing_ok=True)
    restore(store, target, integrity_check="quick")
    return sql.digest(target)
