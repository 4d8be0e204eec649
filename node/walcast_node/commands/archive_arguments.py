"""What the commands on an archive share: which one is meant; TXIDs, times and sizes as they are read and printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from walcast.errors import ConfigError
from walcast.moment import format_moment, parse_moment
from walcast.store import Store, StoreSpec

if TYPE_CHECKING:
    from walcast_node.config.configuration import Config


def parse_timestamp(text: str) -> int:
    """RFC 3339, ms since the epoch; without a zone it is UTC. ConfigError for anything else."""
    try:
        return parse_moment(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no time: write it like 2026-01-31T12:00:00Z") from None


def parse_txid(text: str) -> int:
    """A TXID as it is printed, 16 hex digits, or a position; ConfigError for anything else."""
    match = re.fullmatch(r"([0-9a-f]{16})(/[0-9a-f]{16})?", text)
    if match is None:
        raise ConfigError(f"{text!r} is no TXID: write its 16 hex digits, as `walcast status` prints them")
    return int(match[1], 16)


def archive_of(target: str, config: Path | None) -> str | StoreSpec:
    """The archive of `URL|DB`: the URL, or with a configuration file the archive that it gives the database DB."""
    if config is None:
        if "://" not in target and Path(target).is_file():
            ways = "give the archive's URL, or with --config FILE a database that has one there"
            raise ConfigError(f"{target} is a file, not an archive: {ways}")
        return target
    from walcast_node.config.configuration import load_config

    return _configured(load_config(config), Path(target))


def check_there(store: Store) -> None:
    """ConfigError where an archive that has nothing is not there at all."""
    store.check(write=False, delete=False)


def is_url(target: str) -> bool:
    """Does `URL|DB` mean an archive? It does with a scheme, and as a directory."""
    return "://" in target or Path(target).is_dir()


def size_text(size: int) -> str:
    """Bytes, in the unit that leaves few digits."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def time_text(timestamp_ms: int | None) -> str:
    """A time in UTC, or that it is not known."""
    return "not known" if timestamp_ms is None else format_moment(timestamp_ms)


def columns(rows: list[tuple[str, ...]], right: str = "") -> str:
    """Rows under each other, two blanks between columns; those of `right`, as digits, end together."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(cell.rjust(width) if str(i) in right else cell.ljust(width) for i, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def _configured(config: Config, path: Path) -> StoreSpec:
    database = config.database(path)
    if database is None:
        raise ConfigError(f"{config.path}: no database {path}; the path must be one that the file lists under dbs")
    if database.archive is None:
        raise ConfigError(f"{config.path}:{database.line}: {path} has no archive")
    return database.archive
