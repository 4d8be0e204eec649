"""A primary over a configuration file, for tests of folders."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from support.nodes import Node, poll

from walcast import wire
from walcast_node.commands.status_facts import primary_status


@contextmanager
def serving(config: Path, *flags: str) -> Iterator[Node]:
    """`walcast primary --config …`, ready."""
    given = ["--listen", "127.0.0.1:0", *flags, "--json", "--log-format", "json"]
    node = Node(["primary", "--config", str(config), *given], config.parent, f"primary-{config.stem}")
    node.start()
    try:
        node.facts = node.ready()  # type: ignore[attr-defined]
        node.address = node.facts["listen"]  # type: ignore[attr-defined]
        yield node
    finally:
        node.end()


def write(path: Path, *values: int) -> None:
    """Insert rows into a small database, which is made where there is none. The connection is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=10.0, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE IF NOT EXISTS t (x INTEGER NOT NULL)")
        for value in values:
            db.execute("INSERT INTO t VALUES (?)", (value,))


def rows(path: Path) -> list[int]:
    """What is in it."""
    try:
        with closing(sqlite3.connect(path, timeout=10.0)) as db:
            return [row[0] for row in db.execute("SELECT x FROM t ORDER BY rowid")]
    except sqlite3.Error:
        return []


def status(node: Node) -> dict[str, dict[str, Any]]:
    """What `walcast status` says, by name."""
    facts = primary_status(wire.Address.parse(node.address), wire.Tls())
    return {database["name"]: database for database in facts["databases"]}


def wait_served(node: Node, *names: str, seconds: float = 20.0) -> None:
    """Until exactly these are served."""
    shown: list[str] = []

    def are() -> bool:
        shown[:] = sorted(name for name, facts in status(node).items() if facts["txid"])
        return shown == sorted(names)

    assert poll(are, seconds, 0.1), (shown, node.err.read_text())
