"""What commands print for people. Names, addresses and errors in it may be a peer's, or an archive's: they end no line,
move no cursor, and are no markup."""

from __future__ import annotations

import click
from rich.text import Text

from walcast.identifiers import printable

LINE_MAX_CHARS = 4000


def say(text: str, *, err: bool = False) -> None:
    """Print lines, on standard error with `err`; what cannot be printed in them is escaped."""
    click.echo("\n".join(printable(line, LINE_MAX_CHARS) for line in text.split("\n")), err=err)


def plain(text: str, style: str = "") -> Text:
    """One line as it is, for a table or a console of rich."""
    return Text(printable(text, LINE_MAX_CHARS), style=style)
