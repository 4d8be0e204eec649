"""`python -m examples.consistency NAME…`: one anomaly each, first as it happens, then as it does not.

Exit code 0 only if both were to be seen. `all` runs all of them on one stage.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack

import click

from examples.consistency import (
    bounded_staleness,
    monotonic_reads,
    never_back,
    once,
    one_moment,
    one_primary,
    read_your_writes,
    survives,
    torn_read,
)
from examples.consistency.stage import Stage
from examples.consistency.telling import NotSeen, Tell

ALL = "all"
# In this order: the last ones change who is the primary.
EXAMPLES: dict[str, Callable[[Stage, Tell], None]] = {
    "torn_read": torn_read.show,
    "one_moment": one_moment.show,
    "read_your_writes": read_your_writes.show,
    "monotonic_reads": monotonic_reads.show,
    "bounded_staleness": bounded_staleness.show,
    "once": once.show,
    "never_back": never_back.show,
    "survives": survives.show,
    "one_primary": one_primary.show,
}


@click.command(epilog="\b\nExample:\n  python -m examples.consistency read_your_writes")
@click.argument("names", nargs=-1, required=True, type=click.Choice([*EXAMPLES, ALL]), metavar="NAME…|all")
def main(names: tuple[str, ...]) -> None:
    """Show what each guarantee of docs/consistency.md prevents, with real walcast processes on this machine."""
    logging.getLogger("walcast").addHandler(logging.NullHandler())
    chosen = list(EXAMPLES) if ALL in names else list(names)
    with ExitStack() as stack:
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            stage = stack.enter_context(Stage())
            for name in chosen:
                click.echo(name)
                tell = Tell(click.echo)
                stage.settle()
                EXAMPLES[name](stage, tell)
                tell.end()
        except NotSeen as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
