"""The reading list in SQL: a table of entries, their pictures as blobs, and an FTS5 index that triggers keep.

Nothing here knows of replication. Every function takes a plain `sqlite3.Connection`.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, replace
from datetime import datetime

from markupsafe import Markup, escape

from examples.flask_app.pictures import Picture

PAGE = 30  # entries
QUERY_WORDS = 12
LONGEST = {"title": 200, "author": 120, "note": 2000, "via": 40}  # characters
LONGEST_KEY = 64

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- an id is never given twice: permalinks stay true
    key TEXT NOT NULL UNIQUE,              -- made with the form, so that a form posted twice is one entry
    title TEXT NOT NULL,
    author TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    via TEXT NOT NULL DEFAULT '',          -- the region where it was sent
    region TEXT NOT NULL DEFAULT '',       -- the region that wrote it: the primary of that moment
    picture TEXT,                          -- digest of its picture
    added TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ'))
);
CREATE TABLE IF NOT EXISTS picture (
    digest TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    bytes BLOB NOT NULL
);
CREATE VIRTUAL TABLE IF NOT EXISTS entry_words USING fts5 (
    title, author, note, content = 'entry', content_rowid = 'id', tokenize = "unicode61 remove_diacritics 2"
);
CREATE TRIGGER IF NOT EXISTS entry_added AFTER INSERT ON entry BEGIN
    INSERT INTO entry_words (rowid, title, author, note) VALUES (new.id, new.title, new.author, new.note);
END;
CREATE TRIGGER IF NOT EXISTS entry_removed AFTER DELETE ON entry BEGIN
    INSERT INTO entry_words (entry_words, rowid, title, author, note)
        VALUES ('delete', old.id, old.title, old.author, old.note);
    DELETE FROM picture WHERE digest = old.picture AND NOT EXISTS (SELECT 1 FROM entry WHERE picture = old.picture);
END;
CREATE TABLE IF NOT EXISTS line (id INTEGER PRIMARY KEY, text TEXT NOT NULL);  -- what the page /lab writes
"""

COLUMNS = "entry.id, entry.title, entry.author, entry.note, entry.via, entry.region, entry.picture, entry.added"

# Marks of what was found. Control characters: `Draft.errors` lets none into an entry.
_OPEN, _CLOSE = "\x02", "\x03"
_ARTICLE = re.compile(r"^(the|an?|der|die|das|l[ea]s?|el|il|os?)\s+(?=\w)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Entry:
    """As it is shown. `excerpt`: HTML, the part of it that a search found; None for what no search found."""

    id: int
    title: str
    author: str
    note: str
    via: str
    region: str
    picture: str | None
    added: str
    excerpt: Markup | None = None

    @property
    def initial(self) -> str:
        """For its spine; articles say little."""
        return _ARTICLE.sub("", self.title)[:1].upper()

    @property
    def added_on(self) -> str:
        """The day, for people."""
        day = datetime.fromisoformat(self.added)
        return f"{day.day} {day:%B %Y}"


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry as somebody sent it."""

    key: str
    title: str
    author: str = ""
    note: str = ""
    via: str = ""

    def errors(self) -> dict[str, str]:
        """Field → what to change; empty when it can be kept."""
        found: dict[str, str] = {}
        for field, most in LONGEST.items():
            text = getattr(self, field)
            if len(text) > most:
                found[field] = f"At most {most} characters, please; these are {len(text)}."
            elif _CONTROL.search(text):
                found[field] = "This has a control character in it, which cannot be kept."
        if not self.title:
            found["title"] = "A title, please: everything else can wait."
        if not 0 < len(self.key) <= LONGEST_KEY:
            found["key"] = "This form has lost its number. Please send it once more."
        return found


def create(db: sqlite3.Connection) -> None:
    """Make what is missing."""
    db.executescript(SCHEMA)


def add(db: sqlite3.Connection, draft: Draft, picture: Picture | None, region: str) -> tuple[int, bool]:
    """One transaction: the entry's id, and whether it is this draft's.

    A key that is taken is no second entry: it was posted twice (reloaded, or sent again when a failover had cut off the
    first answer). False: another draft had the key, because somebody went back to the form and wrote something else.
    """
    fields = (draft.title, draft.author, draft.note, draft.via)
    with db:
        db.execute("BEGIN IMMEDIATE")
        known = db.execute("SELECT id, title, author, note, via FROM entry WHERE key = ?", (draft.key,)).fetchone()
        if known is not None:
            return int(known[0]), tuple(known[1:]) == fields
        if picture is not None:
            values = (picture.digest, picture.type, picture.data)
            db.execute("INSERT INTO picture VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING", values)
        cursor = db.execute(
            "INSERT INTO entry (key, title, author, note, via, region, picture) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (draft.key, *fields, region, picture.digest if picture else None),
        )
    assert cursor.lastrowid is not None
    return cursor.lastrowid, True


def remove(db: sqlite3.Connection, entry_id: int) -> bool:
    """False when it was not there."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        return db.execute("DELETE FROM entry WHERE id = ?", (entry_id,)).rowcount > 0


def entry(db: sqlite3.Connection, entry_id: int) -> Entry | None:
    """None when there is none."""
    row = db.execute(f"SELECT {COLUMNS} FROM entry WHERE id = ?", (entry_id,)).fetchone()
    return Entry(*row) if row else None


def newest(db: sqlite3.Connection, before: int | None = None) -> list[Entry]:
    """The newest first, `PAGE` of them; `before`: those older than that id."""
    rows = db.execute(
        f"SELECT {COLUMNS} FROM entry WHERE id < coalesce(?, 9e18) ORDER BY id DESC LIMIT ?", (before, PAGE)
    )
    return [Entry(*row) for row in rows]


def count(db: sqlite3.Connection) -> int:
    """All entries."""
    return int(db.execute("SELECT count(*) FROM entry").fetchone()[0])


def search(db: sqlite3.Connection, query: str) -> list[Entry]:
    """The best first. All words must be there, the last one may be the beginning of one."""
    words = re.findall(r"\w+", query)[:QUERY_WORDS]
    if not words:
        return []
    # Words in quotes are only words: nothing of FTS5's own language (NEAR, OR, *, -) is left to type.
    match = " ".join(f'"{word}"' for word in words) + "*"
    rows = db.execute(
        f"SELECT {COLUMNS}, snippet(entry_words, -1, ?, ?, '…', 24) FROM entry_words JOIN entry "
        "ON entry.id = entry_words.rowid WHERE entry_words MATCH ? ORDER BY bm25(entry_words, 4, 3, 1), entry.id DESC "
        "LIMIT ?",
        (_OPEN, _CLOSE, match, PAGE),
    )
    return [replace(Entry(*row[:-1]), excerpt=_marked(row[-1])) for row in rows]


def picture(db: sqlite3.Connection, digest: str) -> Picture | None:
    """None when there is none."""
    row = db.execute("SELECT type, bytes FROM picture WHERE digest = ?", (digest,)).fetchone()
    return Picture(row[0], row[1]) if row else None


def _marked(excerpt: str) -> Markup:
    return Markup(str(escape(excerpt)).replace(_OPEN, "<mark>").replace(_CLOSE, "</mark>"))
