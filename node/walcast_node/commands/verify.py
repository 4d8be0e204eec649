"""`walcast verify`: an archive, or a replica against its primary."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from walcast import wire
from walcast.archive.checks import Findings
from walcast.errors import Corrupt
from walcast.filesystem import check_database_file
from walcast.identifiers import printable
from walcast.moment import format_moment
from walcast.position import format_txid
from walcast.statedir import behind_link
from walcast.store import StoreSpec, open_store
from walcast.wire import Tls
from walcast_node.commands.archive_arguments import archive_of, is_url, size_text, time_text
from walcast_node.commands.options import CONFIG, JSON, PATH, Command, flag, tls_flags, tls_of
from walcast_node.commands.printing import say
from walcast_node.commands.progress import progress_of
from walcast_node.config.numbers import Whole

EXAMPLES = (
    "walcast verify s3://bucket/app?region=eu-west-1",
    "walcast verify s3://bucket/app --sample",
    "walcast verify /edge/app.db --primary 127.0.0.1:7420",
)


@click.command("verify", cls=Command, epilog="\b\nExample:\n" + "\n".join(f"  {line}" for line in EXAMPLES))
@click.argument("target", metavar="URL|DB")
@CONFIG
@flag("--scratch", type=PATH, default=None, help="Archive: folder to restore into; the system's own if not given.")
@flag("--sample", is_flag=True, help="Archive: a cheap look that says what it leaves out.")
@flag("--sample-files", type=Whole(0), default=8, help="Archive: how many files a sample reads whole.")
@flag("--parallelism", type=Whole(1, 64), default=8, help="Archive: files read at once.")
@flag("--primary", "primary_address", default=None, help="Replica: HOST:PORT of the primary to compare with.")
@flag("--name", default=None, help="Replica: its name at the primary; the file's stem when not given.")
@tls_flags
@JSON
def verify_command(
    target: str,
    config: Path | None,
    scratch: Path | None,
    sample: bool,
    sample_files: int,
    parallelism: int,
    primary_address: str | None,
    name: str | None,
    as_json: bool,
    **tls: Any,
) -> None:
    """Prove an archive restorable, or a replica equal to its primary.

    An archive (a URL, a directory, or with --config a database that has one): reads every file, checks names and
    checksums, that no TXID is missing and that files agree with each other; restores the newest state to a scratch
    file, lets SQLite check it and compares the database checksum. Prints each problem in a line and exits with 1 when
    there is any.

    A replica: compares it with its primary, page by page.
    """
    if is_url(target) or (config is not None and primary_address is None):
        where = target if is_url(target) else archive_of(target, config)
        _verify_archive(
            where, as_json, scratch=scratch, parallelism=parallelism, sample=sample_files if sample else None
        )
    elif primary_address is None:
        raise click.UsageError(
            f"{target} is no archive: give a URL or a directory, or --primary to compare a replica with"
        )
    else:
        path, guess = Path(target), name is None
        _verify_replica(behind_link(path), primary_address, name or path.stem, as_json, tls_of(**tls), guess=guess)


def _verify_archive(
    where: str | StoreSpec, as_json: bool, *, scratch: Path | None, parallelism: int, sample: int | None
) -> None:
    from walcast.restore.verify import sample_archive, verify_archive

    with open_store(where) as store, progress_of("verifying", quiet=as_json) as progress:
        if sample is not None:
            found = sample_archive(store, count=sample, parallelism=parallelism, progress=progress)
        else:
            found = verify_archive(store, scratch=scratch, parallelism=parallelism, progress=progress)
    click.echo(json.dumps(_facts(found))) if as_json else say(_words(found))
    if found.problems:
        count = len(found.problems)
        raise Corrupt(f"{found.url} has {count} problem{'s' if count > 1 else ''}; the first: {found.problems[0]}")


def _words(found: Findings) -> str:
    lines = [f"problem: {printable(text)}" for text in found.problems]
    lines += [f"note: {printable(text)}" for text in found.notes]
    lines += [f"not checked: {printable(text)}" for text in found.unchecked]
    lines.append(f"read {found.files_read:,} of {found.files:,} files, {size_text(found.bytes_read)}")
    if found.position is not None:
        size = size_text(found.pages * found.page_size)
        time = time_text(found.timestamp_ms)
        lines.append(f"restored {size} to {found.position}, {time}: integrity_check and checksum are right")
    count = len(found.problems)
    lines.append("no problems" if not count else f"{count} problem{'s' if count > 1 else ''}")
    return "\n".join(lines)


def _facts(found: Findings) -> dict[str, Any]:
    position = found.position
    return {
        "url": found.url,
        "ok": not found.problems,
        "problems": found.problems,
        "notes": found.notes,
        "unchecked": found.unchecked,
        "files": found.files,
        "files_read": found.files_read,
        "bytes_read": found.bytes_read,
        "position": str(position) if position else None,
        "txid": format_txid(position.txid) if position else None,
        "time": format_moment(found.timestamp_ms) if position else None,
        "pages": found.pages if position else None,
        "page_size": found.page_size if position else None,
    }


def _verify_replica(db: Path, primary_address: str, name: str, as_json: bool, tls: Tls, *, guess: bool) -> None:
    from walcast_follower.subscribe.primary_client import Client
    from walcast_follower.verify import Verified, verify_replica

    check_database_file(db)
    address = wire.Address.parse(primary_address)

    async def run() -> Verified:
        client = Client(address, tls, database=name, follower_id="verify", guess=guess)
        try:
            return await verify_replica(db, client)
        finally:
            await client.close()

    done = asyncio.run(run())
    if as_json:
        facts = {
            "equal": True,
            "pages": done.pages,
            "position": str(done.position),
            "primary_position": str(done.primary_position),
        }
        click.echo(json.dumps(facts))
    else:
        say(f"equal: {done.pages} pages, replica at {done.position}, primary at {done.primary_position}")
