"""A folder with what a node or a client shows and trusts, as `walcast certs` makes it: NAME.key, NAME.pem, ca.pem."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from walcast.errors import ConfigError
from walcast.oserrors import at_path

CA_NAME, CA_KEY_NAME = "ca.pem", "ca.key"


class Files(TypedDict):
    """PEM files: whom to trust, what to show, and its key."""

    ca: Path
    cert: Path
    key: Path


def files_of(folder: Path) -> Files:
    """The files in `folder`. ConfigError if there is no key in it, or more than one, or one of the other two is not."""
    try:
        keys = sorted(path for path in folder.iterdir() if path.suffix == ".key")
    except OSError as error:
        raise ConfigError(f"the folder of certificates {at_path(error, folder)}") from error
    if (folder / CA_KEY_NAME) in keys:
        raise ConfigError(f"{folder} is the folder of a CA: give the one in it that `walcast certs node` made")
    if len(keys) != 1:
        found = ", ".join(path.name for path in keys[:5]) or "none"
        raise ConfigError(f"the folder of certificates {folder} must have one file NAME.key; it has: {found}")
    cert, ca = keys[0].with_suffix(".pem"), folder / CA_NAME
    for path in (cert, ca):
        if not path.is_file():
            raise ConfigError(f"the folder of certificates {folder} has no file {path.name}")
    return Files(ca=ca, cert=cert, key=keys[0])
