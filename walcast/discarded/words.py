"""summary.txt: for somebody who was woken up by it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from walcast.discarded.summary import Kind
from walcast.position import Position, format_txid

TABLES_WITH_COMMANDS = 5

_PLAIN = re.compile(r"[\w .-]+")


def words(facts: dict[str, Any], folder: str) -> str:
    """The text for what `Summary.facts` answered; `folder` is where it will stand."""
    parts = (_head(facts), _tables(facts), _files(facts), _what_to_do(facts, folder))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(facts: dict[str, Any]) -> Iterator[str]:
    before_image = facts["kind"] == Kind.BEFORE_IMAGE
    if before_image:
        yield "Kept by walcast: the pages of this node that another history was copied over, as they were before."
        yield "What only this node had is among them; it is not in the database any more."
    else:
        yield "Kept by walcast: the transactions that only this node had."
        yield "They are in no other node's history, and not in the database any more once it follows that."
    yield ""
    yield f"why          {facts['why']}"
    yield f"database     {facts['database']}"
    yield f"kept at      {facts['kept_at']}"
    new = facts["new_primary"] or "another primary"
    term = f", term {facts['new_term']}" if facts["new_term"] else ""
    yield f"replaced by  the history of {new}{term}"
    if before_image:
        yield f"old state    {_old_state(facts)}"
        yield f"new state    {facts['base']}, which the pages here turn back into the old one"
        yield f"last write   about {facts['last_time']}"
    else:
        yield f"fork         {facts['base']}, up to which both histories are the same"
        yield f"end          {facts['end']}, term {facts['term']}"
        yield f"written      {facts['first_time']} to {facts['last_time']}"
        yield f"TXIDs        {facts['min_txid']} to {facts['max_txid']}"
    yield f"size         {facts['bytes']:,} bytes in LTX files: {facts['files']:,}"
    yield f"pages        {facts['distinct_pages']:,} of {facts['commit_pages']:,}: {_numbers(facts['page_numbers'])}"


def _old_state(facts: dict[str, Any]) -> str:
    position = Position.parse(facts["end"])
    if position.txid:
        return f"{position}, term {facts['term']}"
    return f"database checksum {position.checksum:016x}; its TXID is not known, the file is named after the new one"


def _numbers(pages: dict[str, Any]) -> str:
    first, last = (" ".join(map(str, pages[end])) for end in ("first", "last"))
    return f"{first} … {pages['left_out']:,} more … {last}" if pages["left_out"] else first


def _tables(facts: dict[str, Any]) -> Iterator[str]:
    yield "Tables and indexes touched, with pages:"
    for tree in facts["tables"]:
        of = f" of {tree['table']}" if tree["table"] != tree["name"] else ""
        what = f"{tree['kind']} {tree['name']}{of}" if tree["name"] else "free pages, or of what was dropped"
        yield f"  {tree['pages']:10,}  {what}"
    if facts["tables_note"]:
        yield f"  {facts['tables_note']}"
    elif facts["kind"] == Kind.TRANSACTIONS:
        yield "  as the pages were used in the end: before a VACUUM, a DROP or the like they may have been of others"


def _files(facts: dict[str, Any]) -> Iterator[str]:
    yield "Files: to TXID, time, pages, tables and indexes"
    for file in facts["first_files"]:
        yield _file(file)
    if facts["files_left_out"]:
        yield f"  … {facts['files_left_out']:,} more …"
    for file in facts["last_files"]:
        yield _file(file)


def _file(file: dict[str, Any]) -> str:
    touched = ", ".join(tree["name"] or "(none)" for tree in file["tables"])
    return f"  {file['max_txid']}  {file['time']:24}  {file['pages']:6,}  {touched}"


def _what_to_do(facts: dict[str, Any], folder: str) -> Iterator[str]:
    base = Position.parse(facts["base"])
    archive = shlex.quote(facts["archive"]) if facts["archive"] else "ARCHIVE_URL"
    run = f"{shlex.quote(facts['python'])} -m walcast.discarded {shlex.quote(folder)}"
    before_image = facts["kind"] == Kind.BEFORE_IMAGE
    which = "right after it was overwritten" if before_image else "at the fork"
    yield "What to do"
    yield ""
    yield "Nothing is urgent: walcast never deletes this folder. Delete it when nobody needs it any more."
    yield ""
    yield "To have the database as this node had it, in a folder with room for it twice:"
    yield f"1. The database {which}, from the archive:"
    yield f"     walcast restore {archive} -o base.db --txid {format_txid(base.txid)}"
    yield "2. The files of this folder over it. Checksums prove the result; nothing else is changed:"
    yield f"     {run} base.db old.db"
    yield "3. What differs, as SQL, with SQLite's sqldiff; or table by table (exchange main and base: rows it deleted):"
    yield "     sqldiff base.db old.db"
    touched = dict.fromkeys(tree["table"] for tree in facts["tables"])
    for table in [name for name in touched if name not in ("", "sqlite_schema")][:TABLES_WITH_COMMANDS]:
        yield f"     {_difference(table)}"
    yield ""
    yield "Where no archive has that TXID any more: rows can still be read from the single pages, over a copy of the"
    yield "database as it is now. That is a mixture of two histories, good for finding rows and for nothing else:"
    yield f"     sqlite3 {shlex.quote(facts['database'])} '.backup now.db'"
    yield f"     {run} now.db mixture.db --anyway"
    yield "     sqlite3 mixture.db .recover > rows.sql"


def _difference(table: str) -> str:
    if _PLAIN.fullmatch(table):  # nearly every name, and easier to read and to change
        sql = f"ATTACH 'base.db' AS base; SELECT * FROM main.[{table}] EXCEPT SELECT * FROM base.[{table}]"
        return f'sqlite3 old.db "{sql}"'
    name = '"' + table.replace('"', '""') + '"'
    sql = f"ATTACH 'base.db' AS base; SELECT * FROM main.{name} EXCEPT SELECT * FROM base.{name}"
    return f"sqlite3 old.db {shlex.quote(sql)}"
