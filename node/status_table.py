"""What `walcast status` prints for people: the facts of `status` as a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from node.saying import plain
from node.status import Facts


def table(facts: Facts) -> Table:
    """For people."""
    return _primary_table(facts) if "databases" in facts else _replica_table(facts)


def _primary_table(facts: Facts) -> Table:
    title = plain(f"{facts['role']}, term {facts['term']}")
    shown = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False
    )  # 80 columns are enough
    for column in ("node", "state", "TXID", "durable", "behind", "lag ms", "WAL MB", "archived"):
        shown.add_column(
            column, justify="left" if column in ("node", "state") else "right", no_wrap=column != "archived"
        )
    wrong: list[Text] = []
    for database in facts["databases"]:
        archive = database["archive"]
        archived = "" if archive is None else archive["error"] or str(archive["txid"])
        wal = f"{database['wal_bytes'] / 1e6:.1f}"
        state = _state(database)
        shown.add_row(plain(database["name"]), plain(state), str(database["txid"]), "", "", "", wal, plain(archived))
        for follower in database["followers"]:
            behind, lag = str(follower["lag_txids"]), f"{follower['lag_ms']:.1f}"
            applied, durable = str(follower["applied_txid"]), str(follower["durable_txid"])
            name, phase = plain(f"  {follower['id']}"), plain(follower["state"])
            shown.add_row(name, phase, applied, durable, behind, lag, "", "")
        words = [said for said in (database["trouble"], database.get("app_url_refused")) if said]
        which = f"{database['name']}: " if len(facts["databases"]) > 1 else ""
        wrong += [plain(f"{which}{said}") for said in words]
    if wrong:
        shown.caption, shown.caption_justify = Text("\n").join(wrong), "left"
    if tls := facts.get("tls"):
        title = _lines(title, f"certificate of {_certificate(tls)}")
    if refused := facts.get("credentials_error"):
        title = _lines(title, f"changed credentials are not in force: {refused}")
    shown.title = title
    return shown


def _state(database: Facts) -> str:
    if "state" not in database:
        return str(database["role"])
    if not database["state"]:
        return "starting"  # its role is not known yet
    return f"{database['state']} from {database['primary']}" if database["primary"] else str(database["state"])


def _lines(above: Text, below: str) -> Text:
    return Text("\n").join((above, plain(below)))


def _replica_table(facts: Facts) -> Table:
    shown = Table(title=plain(f"replica {facts['path']}"), title_justify="left", show_header=False, box=SIMPLE_HEAD)
    for name in ("state", "position", "lag_txids", "lag_ms", "primary", "term", "wal_bytes", "id"):
        shown.add_row(name, plain(str(facts[name])))
    for folder in facts.get("discarded", ()):
        shown.add_row("kept aside", plain(folder))
    if tls := facts.get("tls"):
        shown.add_row("certificate", plain(_certificate(tls)))
    for name in ("app_url_refused", "trouble", "credentials_error"):
        if facts.get(name):
            shown.add_row(name, plain(facts[name]))
    return shown


def _certificate(tls: Facts) -> str:
    return f"{tls['identity'] or 'nobody'}, until {tls['not_after']}"
