"""Is this a file that can be replicated? Checks that change nothing on disk."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from walcast.errors import ConfigError
from walcast.oserrors import at_path
from walcast.permissions import OWNER_ONLY_FOLDER, as_in_its_folder, create_file

SQLITE_MAGIC = b"SQLite format 3\0"
_NETWORK_TYPES = (
    "9p afs beegfs ceph cifs coda fuse.ceph fuse.glusterfs fuse.s3fs fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 "
    "ocfs2 orangefs smb3 smbfs"
)
_VERSIONS_AT = slice(18, 20)  # sqlite.org/fileformat2.html, "File format version numbers"
_ROLLBACK_VERSIONS = b"\1\1"
_ESCAPED = re.compile(r"\\([0-7]{3})")  # space, tab, newline, backslash and hash, as the kernel writes them
NETWORK_TYPES = frozenset(_NETWORK_TYPES.split())
_PIECE_BYTES = 4096  # of what does not say its size, as a pipe


def check_database_file(path: Path) -> None:
    """ConfigError, one line, for whatever is not a SQLite database file that this user may read and write."""
    try:
        if not path.is_file():
            if not path.exists():
                raise ConfigError(f"{path}: no such file; check the path")
            what = "is a folder" if path.is_dir() else "is not a regular file"
            raise ConfigError(f"{path}: {what}; give the path of the database file")
        with path.open("r+b") as file:
            head = file.read(_VERSIONS_AT.stop)
    except OSError as error:
        raise ConfigError(at_path(error, path)) from error
    if head and not head.startswith(SQLITE_MAGIC):
        raise ConfigError(
            f"{path}: not a SQLite database; move it away, or have it back from its archive: "
            f"walcast restore ARCHIVE_URL -o {path} --force"
        )
    wal = f"{os.path.realpath(path)}-wal"
    if head[_VERSIONS_AT] == _ROLLBACK_VERSIONS and os.path.lexists(wal):
        # SQLite would mix the two: it writes the versions for WAL mode before it makes a WAL.
        raise ConfigError(
            f"{wal} is of another database than {path}, which was put in its place (it is not in WAL mode): close "
            f"what has it open, remove that file and the -shm beside it, and start again"
        )
    check_local(path)


def is_missing(path: Path) -> bool:
    """Is there no database: no file, or one of zero bytes, which SQLite gives its first page with the first commit? One
    with a WAL beside it may have commits. OSError when nobody can say."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(facts.st_mode) and not facts.st_size and not has_wal(path)


def has_wal(path: Path) -> bool:
    """May a WAL beside the database at `path` have commits?"""
    try:
        return path.with_name(path.name + "-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


def check_local(path: Path) -> None:
    """ConfigError when the path lies on a network file system, where SQLite's WAL mode does not work."""
    kind = filesystem_type(path)
    if kind in NETWORK_TYPES:
        raise ConfigError(f"{path}: on a network file system ({kind}), where a WAL cannot be shared; use a local disk")


def filesystem_type(path: Path, mountinfo: str | None = None) -> str | None:
    """The type of the file system that `path` is on, by the longest mount point above it; None when unknown.

    `mountinfo` is the text of /proc/self/mountinfo (proc(5)): field 5 is the mount point, the type stands behind " - ".
    """
    if mountinfo is None:
        try:
            mountinfo = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
        except OSError:
            return None
    target = path.absolute().resolve()
    best, kind = -1, None
    for line in mountinfo.split("\n")[:-1]:  # not at whatever else ends a line: users choose the names of mount points
        left, _, right = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), left.split(" ")[4]))
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.partition(" ")[0]
    return kind


def read_at_most(file: BinaryIO, most_bytes: int) -> bytes:
    """All of an open file; of one that has more than `most_bytes`, so many and one more.

    Memory goes with the file's size. `file.read(most_bytes + 1)` takes all of that at first, and gives back what it
    does not need: done again and again, that leaves the heap in pieces which are too small for the next time.
    """
    step = max(_PIECE_BYTES, min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
    data = bytearray()
    while piece := file.read(min(step, most_bytes + 1 - len(data))):
        data += piece
    return bytes(data)


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """All of it: the kernel may take less at a time, near the end of the disk. OSError when it is full."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            written = os.pwrite(fd, view[done:], offset + done)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += written


def write_durably(path: Path, *pieces: bytes | memoryview) -> None:
    """Replace the file at `path`: whatever stops this, there is the old content or the new one, and on return the new
    one outlives a power failure. One process at a time; what a killed one leaves is `path` with `.tmp` behind it. The
    file is for its owner only."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(create_file(temporary, os.O_WRONLY), "wb") as file:  # noqa: PTH123 - a descriptor
            as_in_its_folder(file.fileno(), path.parent)
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it must not stay
        raise
    fsync_directory(path.parent)


def make_directory(directory: Path, *, parents: bool = False) -> None:
    """Have `directory`, and with `parents` those above it. A new directory is for its owner only, whatever the umask
    says, and its name is durable on return: to sync what is in a directory does not keep its name."""
    missing = [] if directory.is_dir() else [directory]
    if parents and missing:
        missing += [path for path in directory.parents if not path.is_dir()]
    for path in reversed(missing):
        try:
            path.mkdir(mode=OWNER_ONLY_FOLDER)
            path.chmod(OWNER_ONLY_FOLDER)
        except FileExistsError:
            if not path.is_dir():
                raise
        fsync_directory(path.parent)


def fsync_directory(directory: Path) -> None:
    """Make what was created, renamed or removed in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
