"""What the operating system says of a path, in one line, and what to do about it."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.EEXIST: "a file is in the way: check the path",
    errno.EISDIR: "give the path of a file",
    errno.EROFS: "give a path elsewhere, or mount that one writable",
    errno.ENOSPC: "make room there, and try again",
    errno.EDQUOT: "make room there, and try again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its symbolic links lead in a circle: check the path",
}
_DENIED = (errno.EACCES, errno.EPERM)


def explained(error: OSError, path: Path | str | None = None) -> str:
    """The reason and the remedy, for a message that names `path` itself."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _DENIED and path is not None:
        return f"{reason} for {user_name(os.geteuid())}{_owner(Path(path))}"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{reason}; {remedy}" if remedy else reason


def at_path(error: OSError, path: Path | str) -> str:
    """The path, the reason and the remedy."""
    return f"{path}: {explained(error, path)}"


def user_name(uid: int) -> str:
    """The user's name and number, or the number alone where it has no name here, as in a container."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _owner(path: Path) -> str:
    """Whose it is: of the nearest thing above it that can be looked at."""
    for there in (path, *path.absolute().parents):
        try:
            facts = there.stat()
        except OSError:
            continue
        what = "it belongs" if there == path else f"{there} belongs"
        mode = facts.st_mode & 0o7777
        ours = facts.st_uid == os.geteuid()
        remedy = f"chmod u+rwX {there}" if ours else "run as that user, or change the permissions"
        return f"; {what} to {user_name(facts.st_uid)}, mode {mode:04o}: {remedy}"
    return ""
