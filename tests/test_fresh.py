"""What was put in place a moment ago is not read again, unless somebody was there."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from walcast.checksum import PageChecksums
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.fresh_file import Fresh


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t(v)")
        db.executemany("insert into t values (?)", [("x" * 500,)] * 100)
        db.commit()
    (tmp_path / "state").mkdir()
    return path


def opened(path: Path, fresh: Fresh | None) -> int:
    """The database checksum that an applier starts from."""
    applier = Applier.open(path, path.parent / "state", fresh)
    try:
        return applier.checksums.database
    finally:
        applier.close()


@pytest.fixture
def planted() -> PageChecksums:
    """Checksums of no database, so that who uses them is seen."""
    return PageChecksums(4096, np.arange(1, 20, dtype=np.uint64))


def test_an_untouched_file_is_not_read_again(replica: Path, planted: PageChecksums) -> None:
    assert opened(replica, Fresh.of(replica, planted)) == planted.database


def test_a_file_that_was_written_since_is_read(replica: Path, planted: PageChecksums) -> None:
    fresh = Fresh.of(replica, planted)
    with replica.open("r+b") as file:
        file.seek(5000)
        file.write(b"!")
    os.utime(replica, ns=(1, 1))
    assert opened(replica, fresh) == opened(replica, None) != planted.database


def test_a_file_with_commits_in_its_wal_is_read(replica: Path, planted: PageChecksums) -> None:
    fresh = Fresh.of(replica, planted)
    # Left behind by a process that ends without closing: the WAL stays.
    script = f"import os, sqlite3; db = sqlite3.connect({str(replica)!r}); db.execute('insert into t values (1)'); "
    assert subprocess.call([sys.executable, "-c", script + "db.commit(); os._exit(0)"]) == 0
    assert opened(replica, fresh) == opened(replica, None) != planted.database


def test_another_file_of_the_same_name_is_read(replica: Path, planted: PageChecksums) -> None:
    fresh = Fresh.of(replica, planted)
    copy = replica.with_name("copy")
    copy.write_bytes(replica.read_bytes())
    copy.replace(replica)
    assert opened(replica, fresh) == opened(replica, None) != planted.database
