"""Files that hold secrets or say who is trusted, read without belief in what is at their path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from walcast.errors import ConfigError
from walcast.filesystem import read_at_most
from walcast.oserrors import at_path


def read_file(path: Path, most_bytes: int) -> bytes:
    """A regular file's contents, behind a link too; ConfigError for anything else, or for more than `most_bytes`."""
    return _read(path, most_bytes, follow=True, secret=False)


def read_secret(path: Path, most_bytes: int) -> bytes:
    """As `read_file`, of a file that only its owner can read, who is the user of this process or root; no link."""
    return _read(path, most_bytes, follow=False, secret=True)


def _read(path: Path, most_bytes: int, *, follow: bool, secret: bool) -> bytes:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if not follow and path.is_symlink():
            raise ConfigError(f"{path}: a symbolic link; give the path of the file itself") from error
        raise ConfigError(at_path(error, path)) from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{path}: not a regular file")
        if secret:
            _check_private(path, facts)
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = read_at_most(file, most_bytes)
        if len(data) > most_bytes:
            raise ConfigError(f"{path}: larger than {most_bytes} bytes")
        return data
    except OSError as error:
        raise ConfigError(at_path(error, path)) from error
    finally:
        os.close(fd)


def _check_private(path: Path, facts: os.stat_result) -> None:
    if facts.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path}: belongs to user {facts.st_uid}; it must belong to the user that reads it, or to root"
        )
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise ConfigError(f"{path}: its mode is {mode:04o}, so that others can use it; chmod 0600 it")
