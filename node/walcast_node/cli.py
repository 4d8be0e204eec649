"""The commands: one module each or a few, loaded when one of them is called, so that each starts at once.

Each parses, calls what does the work, and prints; nothing is decided there.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from walcast.redaction import redact

# walcast does no linear algebra: without this NumPy's BLAS library starts a thread for each core, each with a stack.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Name → module of `walcast_node.commands`, function, and what the list of commands says of it.
COMMANDS = {
    "certs": ("certs", "certs_command", "Make a private CA, certificates and tokens."),
    "config": ("config", "config_command", "Look at configuration files."),
    "demo": ("demo", "demo_command", "Show it: an app writing, followers, a SIGKILL, a failover."),
    "drill": ("drill", "drill_command", "Rehearse a failover and report it."),
    "follower": ("follower", "follower_command", "Keep a database a live replica of a primary's."),
    "ls": ("ls", "ls_command", "Show what an archive holds, and what it restores to."),
    "primary": ("primary", "primary_command", "Serve databases to followers, and archive them."),
    "promote": ("failover", "promote_command", "Make this follower the primary."),
    "repair": ("repair", "repair_command", "Show and mend role file, term and lease by hand."),
    "restore": ("restore", "restore_command", "Make a database from an archive, all or nothing."),
    "snapshot": ("snapshot", "snapshot_command", "Back up a database now, whatever is writing to it."),
    "status": ("status", "status_command", "Show where a primary and its followers are, or a replica."),
    "switchover": ("failover", "switchover_command", "Hand the primary's place to a follower."),
    "verify": ("verify", "verify_command", "Prove an archive restorable, or a replica equal to its primary."),
    "wait": ("status", "wait_command", "Wait until a replica has applied a TXID."),
}

# Litestream's words → what does that here.
LITESTREAM = {
    "replicate": "`walcast primary DB URL` or `walcast primary --config FILE`, with --exec for -exec",
    "databases": "`walcast config check FILE`",
    "generations": "`walcast ls URL`",
    "snapshots": "`walcast ls URL`",
    "ltx": "`walcast ls URL`",
    "wal": "`walcast ls URL`",
    "version": "`walcast --version`",
}


class Commands(click.Group):
    """Finds a command in its module."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _hiding():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _hiding():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LITESTREAM:
            raise click.UsageError(f"{cmd_name!r} is a command of Litestream: here it is {LITESTREAM[cmd_name]}", ctx)
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        with _without_collections():
            found = getattr(import_module(f"walcast_node.commands.{module}"), function)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about) in COMMANDS.items()])


@contextmanager
def _without_collections() -> Iterator[None]:
    """Modules are made of objects that stay: to look for garbage among them again and again is a tenth of a start."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _hiding() -> Iterator[None]:
    """What click says of a command line may quote a URL that is in the wrong place."""
    try:
        yield
    except click.UsageError as error:
        said = error.format_message()
        if (plain := redact(said)) != said:
            raise click.UsageError(plain, error.ctx) from None
        raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="walcast")
def main() -> None:
    """Live read replicas, an archive and failover for SQLite, without changing the app."""


if __name__ == "__main__":
    main()
