"""`walcast certs`: a private CA, certificates of nodes and clients, tokens."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from walcast_node.commands.options import JSON, PATH, Command, flag
from walcast_node.config.numbers import Whole

TIME = "%Y-%m-%dT%H:%M:%SZ"


@click.group("certs")
def certs_command() -> None:
    """Make a private CA, certificates of nodes and clients, and tokens.

    \b
    Two machines, origin and edge:
      walcast certs init certs
      walcast certs node certs origin --host 10.0.0.1
      walcast certs node certs edge --host 10.0.0.2
    Copy certs/origin and certs/edge to where they belong; certs/ca.key stays where nobody else comes.
    """


def _written(what: str, files: list[Path], as_json: bool, **facts: object) -> None:
    if as_json:
        click.echo(json.dumps({**facts, "files": list(map(str, files))}))
        return
    click.echo(what)
    for file in files:
        click.echo(f"  {file}")


@certs_command.command("init", cls=Command, epilog="\b\nExample:\n  walcast certs init certs")
@click.argument("directory", metavar="DIR", type=PATH)
@flag("--days", default=3650, type=Whole(1, 36500), help="For how long it is valid.")
@JSON
def init(directory: Path, days: int, as_json: bool) -> None:
    """Make a CA: DIR/ca.pem, which anybody may have, and DIR/ca.key, which nobody else may. Nothing is overwritten."""
    from walcast_node.commands.certs_files import make_authority

    files = make_authority(directory, days)
    _written("a new CA; keep its key where nobody else comes, and a copy of it", files, as_json)


@certs_command.command(
    "node",
    cls=Command,
    epilog="\b\nExample:\n"
    "  walcast certs node certs origin --host 10.0.0.1 --host db.example.com\n"
    "  walcast primary app.db --listen 10.0.0.1:7420 --tls certs/origin",
)
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("node_id", metavar="ID")
@flag("--host", "hosts", multiple=True, required=True, help="Name or IP address where others reach it; again for more.")
@flag("-o", "--output", type=PATH, default=None, help="Folder to write to.  [default: DIR/ID]")
@flag("--days", default=825, type=Whole(1, 36500), help="For how long it is valid.")
@JSON
def node(directory: Path, node_id: str, hosts: tuple[str, ...], output: Path | None, days: int, as_json: bool) -> None:
    """Make a certificate for a node, by the CA in DIR: ID.pem, ID.key and ca.pem in a folder. The node's id is ID then;
    others reach it under the hosts alone. Nothing is overwritten: to renew one, write to another folder and move the
    files over; running nodes take them by themselves."""
    from walcast.access import Kind
    from walcast_node.commands.certs_files import make_certificate

    files = make_certificate(directory, Kind.NODE, node_id, hosts, output, days)
    _written(f"a certificate of the node {node_id}", files, as_json, identity=f"node/{node_id}")


@certs_command.command(
    "client",
    cls=Command,
    epilog="\b\nExample:\n  walcast certs client certs reports\n  walcast certs client certs anna --operate",
)
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("name")
@flag("--operate", is_flag=True, help="It may also change roles: promote, switchover.")
@flag("-o", "--output", type=PATH, default=None, help="Folder to write to.  [default: DIR/NAME]")
@flag("--days", default=825, type=Whole(1, 36500), help="For how long it is valid.")
@JSON
def client(directory: Path, name: str, operate: bool, output: Path | None, days: int, as_json: bool) -> None:
    """Make a certificate for an app or a person, by the CA in DIR: NAME.pem, NAME.key and ca.pem in a folder. It is
    none that a server can have. Nothing is overwritten."""
    from walcast.access import Kind
    from walcast_node.commands.certs_files import make_certificate

    kind = Kind.OPERATOR if operate else Kind.CLIENT
    files = make_certificate(directory, kind, name, (), output, days)
    _written(f"a certificate of the {kind} {name}", files, as_json, identity=f"{kind}/{name}")


@certs_command.command("show", cls=Command, epilog="\b\nExample:\n  walcast certs show certs/origin/origin.pem")
@click.argument("file", type=PATH)
@JSON
def show(file: Path, as_json: bool) -> None:
    """Print whose certificate it is, for which hosts, and for how long it is valid."""
    from walcast_node.commands.certs_files import describe

    now = datetime.now(UTC)
    for found in describe(file):
        facts = {
            "identity": found.identity,
            "hosts": list(found.hosts),
            "not_before": found.not_before.strftime(TIME),
            "not_after": found.not_after.strftime(TIME),
            "valid": found.not_before <= now <= found.not_after,
            "fingerprint": found.fingerprint,
            "issuer": found.issuer,
        }
        if as_json:
            click.echo(json.dumps(facts))
            continue
        click.echo(f"identity     {facts['identity'] or 'none'}")
        click.echo(f"hosts        {', '.join(found.hosts) or 'none'}")
        click.echo(f"valid        {facts['not_before']} to {facts['not_after']}{'' if facts['valid'] else ': not now'}")
        click.echo(f"issuer       {found.issuer}")
        click.echo(f"fingerprint  {found.fingerprint}")


@certs_command.command("token", cls=Command, epilog="\b\nExample:\n  walcast certs token edge-1")
@click.argument("name")
@JSON
def token(name: str, as_json: bool) -> None:
    """Print a new token, and the line by which a server accepts it as NAME's. The token goes into the --token-file of
    who shows it, the line into that of each server; both files need the mode 0600. The token is shown this once."""
    from walcast.access.tokens import new_token, token_line

    made = new_token()
    line = token_line(name, made)
    if as_json:
        click.echo(json.dumps({"name": name, "token": made, "line": line}))
        return
    click.echo("# in the token file of who shows it:")
    click.echo(made)
    click.echo("# in the token file of each server:")
    click.echo(line)
