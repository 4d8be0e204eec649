"""What `walcast status` prints for people: the facts of `status` as a table, or, on a narrow terminal, as a list."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from walcast_node.commands.printing import plain
from walcast_node.commands.status_facts import Facts

WIDE_COLUMNS = 80  # of a terminal, at least, for the table of a node
COLUMNS = ("node", "state", "TXID", "durable", "behind", "lag ms", "WAL MB")
Row = tuple[str, str, str, str, str, str, str]


def table(facts: Facts, columns: int = WIDE_COLUMNS) -> Table:
    """For people, on a terminal of so many columns."""
    if "path" in facts:
        return _path_table(facts)
    return _node_table(facts) if columns >= WIDE_COLUMNS else _node_list(facts)


def _node_table(facts: Facts) -> Table:
    shown = Table(title=_title(facts), title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in COLUMNS:
        left = column in ("node", "state")
        shown.add_column(column, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in _rows(facts):
        shown.add_row(*map(plain, row))
    if wrong := _wrong(facts):
        shown.caption, shown.caption_justify = wrong, "left"
    return shown


def _node_list(facts: Facts) -> Table:
    shown = Table(title=_title(facts), title_justify="left", show_header=False, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column(overflow="fold")
    shown.add_column(overflow="fold")
    for node, *values in _rows(facts):
        for name, value in zip(COLUMNS, (node.strip(), *values), strict=True):
            if value:
                shown.add_row(name, plain(value))
        shown.add_section()
    if wrong := _wrong(facts):
        shown.caption, shown.caption_justify = wrong, "left"
    return shown


def _title(facts: Facts) -> Text:
    lines = [f"{facts['role']}, term {facts['term']}"]
    if tls := facts.get("tls"):
        lines.append(f"certificate of {_certificate(tls)}")
    if refused := facts.get("credentials_error"):
        lines.append(f"changed credentials are not in force: {refused}")
    return _lines(lines)


def _rows(facts: Facts) -> Iterator[Row]:
    """Of each database: itself, its followers, its archive."""
    for database in facts["databases"]:
        wal = f"{database['wal_bytes'] / 1e6:.1f}"
        yield database["name"], _state(database), txid_text(database["txid"]), "", "", "", wal
        for follower in database["followers"]:
            applied = txid_text(follower["applied_txid"])
            durable = txid_text(follower["durable_txid"])
            lag = f"{follower['lag_ms']:.1f}"
            yield f"  {follower['id']}", follower["state"], applied, durable, str(follower["lag_txids"]), lag, ""
        archive = database["archive"]
        if archive is not None and database["state"] not in ("not-served", "waiting"):
            lag = archive["lag"]
            behind, ms = str(lag["transactions"]), f"{lag['ms'] or 0:.1f}"
            state = "failing" if archive["error"] else "archiving" if lag["transactions"] else "archived"
            yield "  archive", state, txid_text(archive["txid"]), "", behind, ms, ""


def txid_text(txid: int) -> str:
    """As the flags take it."""
    return f"{txid:016x}"


def _state(database: Facts) -> str:
    if database["role"] == "follower" and database.get("primary"):
        return f"{database['state']} from {database['primary']}"
    return str(database["role"]) if database["state"] == "serving" else str(database["state"])


def _wrong(facts: Facts) -> Text | None:
    """What is wrong with which database, and what to do."""
    lines: list[str] = []
    for database in facts["databases"]:
        which = f"{database['name']}: " if len(facts["databases"]) > 1 else ""
        for trouble in database["troubles"]:
            lines += [f"{which}{trouble['text']}", f"  {trouble['remedy']}"]
    return _lines(lines) if lines else None


def _lines(lines: list[str]) -> Text:
    return Text("\n").join(map(plain, lines))


def _path_table(facts: Facts) -> Table:
    title = plain(f"{facts['role']} {facts['path']}")
    shown = Table(title=title, title_justify="left", show_header=False, box=SIMPLE_HEAD)
    shown.add_column()
    shown.add_column(overflow="fold")
    for name in ("state", "since", "position", "lag", "primary", "term", "wal_bytes", "id"):
        if facts.get(name) is None or (facts["role"] == "primary" and name in ("lag", "primary")):
            continue  # a primary is behind nobody
        shown.add_row(name, plain(_lag(facts["lag"]) if name == "lag" else str(facts[name])))
    for folder in facts.get("discarded", ()):
        shown.add_row("kept aside", plain(folder))
    if tls := facts.get("tls"):
        shown.add_row("certificate", plain(_certificate(tls)))
    for name in ("app_url_refused", "credentials_error"):
        if facts.get(name):
            shown.add_row(name, plain(facts[name]))
    for trouble in facts["troubles"]:
        shown.add_row("trouble", plain(trouble["text"]))
        shown.add_row("what to do", plain(trouble["remedy"]))
    return shown


def _lag(lag: Facts) -> str:
    known = [
        f"{lag[unit]:,} {word}"
        for unit, word in (("transactions", "transactions"), ("bytes", "bytes"), ("ms", "ms"))
        if lag[unit] is not None
    ]
    return ", ".join(known) or "not known"


def _certificate(tls: Facts) -> str:
    return f"{tls['identity'] or 'nobody'}, until {tls['not_after']}"
