"""A file or a link that somebody else may have put where a database is to be.

In a folder where everybody may make files, as in /tmp, a link could lead walcast to another database, or a replica into
a file of a stranger's, with his permissions. The kernel refuses such links and files to open(2) (protected_symlinks and
protected_regular, proc(5)), where that is switched on; walcast looks behind links itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from walcast.errors import ConfigError
from walcast.statedir import behind_link

_EVERYBODY_WRITES = 0o002


class Planted(ConfigError):
    """`path` is another user's, in a folder where everybody may make files."""

    def __init__(self, path: Path, uid: int) -> None:
        super().__init__(
            f"{path} belongs to the user with uid {uid}, in a folder where everybody may make files: use a folder that "
            "only you can write to"
        )
        self.path = path
        self.uid = uid


class DanglingLink(ConfigError):
    """`path` is a link to nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is a link to {path.readlink()}, which does not exist: give the path of the file itself"
        )
        self.path = path


def resolve_database(path: Path) -> Path:
    """`behind_link` for a process that will write there. DanglingLink, Planted."""
    if os.path.islink(path):  # noqa: PTH114 - False where nobody can say, which opening it says better
        check_not_planted(path)
        if not path.exists():
            raise DanglingLink(path)
    return behind_link(path)


def check_not_planted(path: Path) -> None:
    """Planted where the file or the link at `path` is neither this user's nor root's nor that of the folder's owner."""
    try:
        uid, folder = path.lstat().st_uid, path.absolute().parent.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if folder.st_mode & _EVERYBODY_WRITES and uid not in (os.geteuid(), 0, folder.st_uid):
        raise Planted(path, uid)
