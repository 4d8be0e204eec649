"""What a power cut may leave of a primary's files, made without one: copies of a moment, cut and mixed as a disk may.

The database and its `-wal` as they were on disk at some moment, beside the log as it was at the end: with
`synchronous=NORMAL` that is what a machine finds when it comes up again. Copies are made by another process, since
closing a descriptor of a database drops this process's locks on it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from walcast.statedir import state_dir
from walcast.wal import frame_offset
from walcast_primary.database import Database
from walcast_primary.recovery.boot import NAME as BOOT
from walcast_primary.recovery.boot import Boot, write_boot

PAGE_SIZE = 4096


def copy_files(source: Path, target: Path, *names: str) -> None:
    """By another process; what is not there is left out."""
    target.mkdir(parents=True, exist_ok=True)
    there = [str(source / name) for name in names if (source / name).exists()]
    if there:
        subprocess.run(["cp", "-a", *there, str(target)], check=True)


class Machine:
    """A primary with one app, in this process: `app` is its connection, which checkpoints only when told to.

    `together`: there is no capture thread, and what is committed between two calls of `captured` becomes one entry.
    """

    def __init__(self, folder: Path, together: bool) -> None:
        self._together = together
        self.folder = folder
        self.path = folder / "app.db"
        self.app = apsw.Connection(str(self.path))
        self.app.execute("PRAGMA journal_mode=WAL")
        self.app.execute("PRAGMA wal_autocheckpoint=0")
        self.app.execute("PRAGMA synchronous=OFF")
        self.app.execute("CREATE TABLE rows(n INTEGER PRIMARY KEY, filler BLOB)")
        self.app.execute("CREATE TABLE newest(one INTEGER PRIMARY KEY, n INTEGER)")
        self.app.execute("INSERT INTO newest VALUES (1, 0)")
        self.database = Database(self.path, "app")
        if together:
            self.database.loop.find_place(None)
        else:
            self.database.start()

    def commit(self, count: int = 1, filler: int = 100) -> int:
        """So many commits of one row each; the number of the newest row."""
        for _ in range(count):
            self.app.execute("BEGIN IMMEDIATE")
            self.app.execute("UPDATE newest SET n = n + 1")
            self.app.execute("INSERT INTO rows SELECT n, randomblob(?) FROM newest", (filler,))
            self.app.execute("COMMIT")
        return int(self.app.execute("SELECT n FROM newest").get)

    def captured(self) -> None:
        """Until everything committed is in the log."""
        if self._together:
            self.database.loop._capture.capture()
        else:
            self.database.loop.barrier().result(10)

    @property
    def frames(self) -> int:
        """Committed frames in the WAL."""
        header = self.database.files.index_header()
        assert header is not None
        return header.mx_frame

    def photograph(self, folder: Path) -> None:
        """The database and its WAL as they are now."""
        copy_files(self.folder, folder, "app.db", "app.db-wal")

    def power_cut(self, folder: Path, *, frames: int | None = None, photograph: Path | None = None) -> Path:
        """A copy in which the log is as it is now, and the database as it is now or was when photographed, with only
        the first `frames` of its WAL."""
        copy_files(photograph or self.folder, folder, "app.db", "app.db-wal")
        copy_files(self.folder, folder, "app.db-walcast")
        image = folder / "app.db"
        if frames is not None:
            with (folder / "app.db-wal").open("r+b") as wal:
                wal.truncate(frame_offset(frames + 1, PAGE_SIZE))
        return image

    def close(self) -> None:
        self.database.stop()
        self.app.close()


@contextmanager
def machine(folder: Path, *, together: bool = False) -> Iterator[Machine]:
    """One, closed at the end."""
    folder.mkdir()
    made = Machine(folder, together)
    try:
        yield made
    finally:
        made.close()


def set_boot(image: Path, boot_id: str) -> None:
    """The primary served this very file, under that start of the machine."""
    facts = image.stat()
    (state_dir(image) / BOOT).unlink(missing_ok=True)
    write_boot(state_dir(image), Boot(boot_id, (facts.st_dev, facts.st_ino)))


def newest_row(image: Path) -> int:
    """By an app: the number of the newest row, in a database that is whole."""
    db = apsw.Connection(str(image))
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        newest, count = db.execute("SELECT (SELECT n FROM newest), (SELECT count(*) FROM rows)").fetchall()[0]
        assert newest == count
        return int(newest)
    finally:
        db.close()
