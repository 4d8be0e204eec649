"""What `walcast status` prints for people: the facts of `status` as a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from node.status import Facts


def table(facts: Facts) -> Table:
    """For people."""
    return _primary_table(facts) if "databases" in facts else _replica_table(facts)


def _primary_table(facts: Facts) -> Table:
    title = f"{facts['role']}, term {facts['term']}"
    shown = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False
    )  # 80 columns are enough
    for column in ("node", "state", "TXID", "durable", "behind", "lag ms", "WAL MB", "archived"):
        shown.add_column(
            column, justify="left" if column in ("node", "state") else "right", no_wrap=column != "archived"
        )
    for database in facts["databases"]:
        archive = database["archive"]
        archived = "" if archive is None else archive["error"] or str(archive["txid"])
        wal = f"{database['wal_bytes'] / 1e6:.1f}"
        state = f"{database['state']} from {database['primary']}" if "state" in database else database["role"]
        shown.add_row(database["name"], state, str(database["txid"]), "", "", "", wal, archived)
        for follower in database["followers"]:
            behind, lag = str(follower["lag_txids"]), f"{follower['lag_ms']:.1f}"
            applied, durable = str(follower["applied_txid"]), str(follower["durable_txid"])
            shown.add_row(f"  {follower['id']}", follower["state"], applied, durable, behind, lag, "", "")
        if database["trouble"]:
            shown.caption, shown.caption_justify = database["trouble"], "left"
    return shown


def _replica_table(facts: Facts) -> Table:
    shown = Table(title=f"replica {facts['path']}", title_justify="left", show_header=False, box=SIMPLE_HEAD)
    for name in ("state", "position", "lag_txids", "lag_ms", "primary", "term", "wal_bytes", "id"):
        shown.add_row(name, str(facts[name]))
    for folder in facts.get("discarded", ()):
        shown.add_row("kept aside", folder)
    if facts.get("trouble"):
        shown.add_row("trouble", facts["trouble"])
    return shown
