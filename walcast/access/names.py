"""Names of nodes, clients and operators, as certificates and token files have them."""

from __future__ import annotations

from walcast.errors import ConfigError

NAME_CHARACTERS = 200


def is_name(text: str) -> bool:
    """1 to 200 printable characters, none of them a space at an end."""
    return 0 < len(text) <= NAME_CHARACTERS and text.isprintable() and text == text.strip()


def check_name(text: str, what: str = "a name") -> str:
    """The name itself; ConfigError when it is none."""
    if not is_name(text):
        shown = ascii(text[:NAME_CHARACTERS])
        raise ConfigError(f"{shown} cannot be {what}: it has 1 to {NAME_CHARACTERS} printable characters")
    return text
