"""`walcast ls`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from walcast.archive import LEVELS, ArchiveFile, iter_files
from walcast.archive.contents import Contents, End, Hole, contents_of
from walcast.archive.generations import list_generations
from walcast.moment import format_moment
from walcast.position import format_txid
from walcast.store import Store, open_store
from walcast_node.commands.archive_arguments import archive_of, check_there, columns, size_text, time_text
from walcast_node.commands.options import CONFIG, JSON, Command, flag
from walcast_node.commands.printing import say
from walcast_node.config.numbers import Whole


@click.command(
    "ls",
    cls=Command,
    epilog="\b\nExample:\n  walcast ls s3://bucket/app?region=eu-west-1\n  walcast ls /backups/app --level 0 --files",
)
@click.argument("url", metavar="URL|DB")
@CONFIG
@flag("--level", type=Whole(0, max(LEVELS)), default=None, help="Only this level; 9 holds the snapshots.")
@flag("--files", "all_files", is_flag=True, help="List every file, with the time it was stored.")
@JSON
def ls_command(url: str, config: Path | None, level: int | None, all_files: bool, as_json: bool) -> None:
    """Show what an archive holds: snapshots, levels, and what it restores to.

    Times are those of the commits, except with --files: those are the store's own, in a directory the commits' too, on
    S3 those of the uploads.
    """
    levels = LEVELS if level is None else (level,)
    with open_store(archive_of(url, config)) as store:
        if all_files and not as_json:
            for line in _file_lines(store, levels):
                say(line)
            return
        contents = contents_of(store, levels)
        if not contents.files and not contents.generations:
            check_there(store)
        url = store.url
    if as_json:
        click.echo(json.dumps(_facts(url, contents, summary=level is None, files=all_files)))
    else:
        say(_words(url, contents, summary=level is None))


def _file_lines(store: Store, levels: Iterable[int]) -> Iterator[str]:
    """As the listing comes: it may be long."""
    empty = True
    for file in iter_files(store, levels):
        if empty:
            yield "level  from TXID         to TXID                  bytes  stored"
            empty = False
        txids = f"{format_txid(file.min_txid)}  {format_txid(file.max_txid)}"
        yield f"{file.level:5}  {txids}  {file.size:12,}  {format_moment(file.timestamp_ms)}"
    if empty:
        for old in list_generations(store):
            yield f"{old.key}  {old.size:12,}  {format_moment(old.timestamp_ms)}"


def _words(url: str, contents: Contents, *, summary: bool) -> str:
    if contents.generations:
        return f"{url}\n{_old_words(contents)}"
    if not contents.files:
        return f"{url}\nno LTX files: the archive is empty, or the path is wrong"
    rows = [
        (
            str(level.level),
            f"{level.files:,}",
            size_text(level.bytes),
            format_txid(level.min_txid),
            format_txid(level.last.txid),
            time_text(level.first.timestamp_ms),
            time_text(level.last.timestamp_ms),
        )
        for level in contents.levels
    ]
    head = ("level", "files", "size", "from TXID", "to TXID", "oldest", "newest")
    parts = [url, columns([head, *rows], right="012")]
    if contents.snapshots:
        snapshots = [
            (format_txid(s.file.max_txid), time_text(s.timestamp_ms), size_text(s.file.size))
            for s in contents.snapshots
        ]
        parts.append(columns([("snapshot at", "time", "size"), *snapshots], right="2"))
    parts.append("\n".join(_summary(contents, whole=summary)))
    return "\n\n".join(part for part in parts if part)


def _summary(contents: Contents, *, whole: bool) -> Iterator[str]:
    for level in contents.levels:
        for hole in level.holes:
            yield f"level {level.level} lacks {_hole(hole)}"
    if not whole:
        return
    for found in contents.restorable:
        yield f"restorable: {_end(found.first)} to {_end(found.last)}, {found.states:,} states"
    if not contents.restorable:
        yield "restorable: nothing, for there is no snapshot"
    for hole in contents.holes:
        yield f"cannot be restored: {_hole(hole)}"
    yield f"newest: TXID {format_txid(contents.newest_txid)}"


def _hole(hole: Hole) -> str:
    return f"TXID {format_txid(hole.first_txid)} to {format_txid(hole.last_txid)}"


def _end(end: End) -> str:
    return f"TXID {format_txid(end.txid)} ({time_text(end.timestamp_ms)})"


def _old_words(contents: Contents) -> str:
    files = contents.generations
    names = dict.fromkeys(file.generation for file in files)
    rows = []
    for name in names:
        own = [file for file in files if file.generation == name]
        snapshots = sum(file.is_snapshot for file in own)
        times = [file.timestamp_ms for file in own]
        size = size_text(sum(file.size for file in own))
        rows.append(
            (name, str(snapshots), str(len(own) - snapshots), size, time_text(min(times)), time_text(max(times)))
        )
    head = ("generation", "snapshots", "segments", "size", "oldest", "newest")
    return f"an archive of Litestream 0.3\n\n{columns([head, *rows], right='123')}"


def _facts(url: str, contents: Contents, *, summary: bool, files: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "url": url,
        "format": "litestream-0.3" if contents.generations else "ltx",
        "levels": [
            {
                "level": level.level,
                "files": level.files,
                "bytes": level.bytes,
                "min_txid": format_txid(level.min_txid),
                "max_txid": format_txid(level.last.txid),
                "first_time": _moment(level.first),
                "last_time": _moment(level.last),
                "holes": [_hole_facts(hole) for hole in level.holes],
            }
            for level in contents.levels
        ],
        "snapshots": [
            {
                "txid": format_txid(s.file.max_txid),
                "time": None if s.timestamp_ms is None else format_moment(s.timestamp_ms),
                "bytes": s.file.size,
                "key": s.file.key,
            }
            for s in contents.snapshots
        ],
    }
    if summary:
        facts |= {
            "restorable": [
                {
                    "first_txid": format_txid(found.first.txid),
                    "last_txid": format_txid(found.last.txid),
                    "first_time": _moment(found.first),
                    "last_time": _moment(found.last),
                    "states": found.states,
                }
                for found in contents.restorable
            ],
            "holes": [_hole_facts(hole) for hole in contents.holes],
            "newest_txid": format_txid(contents.newest_txid),
        }
    if files:
        facts["files"] = [_file_facts(file) for file in contents.files or contents.generations]
    return facts


def _hole_facts(hole: Hole) -> dict[str, str]:
    return {"first_txid": format_txid(hole.first_txid), "last_txid": format_txid(hole.last_txid)}


def _moment(end: End) -> str | None:
    return None if end.timestamp_ms is None else format_moment(end.timestamp_ms)


def _file_facts(file: ArchiveFile) -> dict[str, Any]:
    return {
        "key": file.key,
        "level": file.level,
        "min_txid": format_txid(file.min_txid),
        "max_txid": format_txid(file.max_txid),
        "bytes": file.size,
        "stored": format_moment(file.timestamp_ms),
    }
