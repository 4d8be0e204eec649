"""Archives of the real Litestream 0.3, in a directory and on S3, are restored as it restores them itself."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from support.nodes import walcast
from support.s3 import BUCKET, KEY_ID, SECRET, S3Server, rclone_s3

from walcast.archive.damage import DamagedFile
from walcast.archive.generations import GenerationFile, GenerationGap, list_generations, plan_generation
from walcast.errors import ConfigError
from walcast.moment import format_moment
from walcast.restore import restore
from walcast.store import DirectorySpec, Store, StoreSpec, open_store

LITESTREAM = Path(sys.prefix) / "litestream-0.3" / "bin" / "litestream"
DEADLINE_S = 30
PAGE_SIZES = {"app": 4096, "small": 512, "big": 65536, "secret": 4096}
# Somebody's age key, as its documentation has one: nothing here ever decrypts.
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


@dataclass
class Site:
    """Databases that Litestream 0.3 replicates: every one to a directory, `app` also to S3."""

    folder: Path
    server: S3Server
    generator: random.Random
    states: dict[str, list[bytes]] = field(default_factory=dict)  # by database, after each run of Litestream
    ended_ms: list[int] = field(default_factory=list)  # when each run was over

    def spec(self, where: str, name: str = "app") -> StoreSpec:
        return self.server.spec("deep/app") if where == "s3" else DirectorySpec(self.folder / "archive" / name)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    def write_config(self) -> None:
        lines = ["dbs:"]
        for name in PAGE_SIZES:
            lines += [f"- path: {self.path(name)}", "  monitor-interval: 20ms", "  min-checkpoint-page-count: 25"]
            lines += ["  replicas:"]
            options = ["sync-interval: 20ms", "snapshot-interval: 400ms"]
            if name == "secret":
                options.append(f"age: {{recipients: [{RECIPIENT}]}}")
            lines += self._replica("file", f"path: {self.folder / 'archive' / name}", *options)
            if name == "app":
                access = [f"access-key-id: {KEY_ID}", f"secret-access-key: {SECRET}", f"bucket: {BUCKET}"]
                endpoint = [f"endpoint: {self.server.endpoint}", "force-path-style: true", "path: deep/app"]
                lines += self._replica("s3", *access, *endpoint, *options)
        (self.folder / "litestream.yml").write_text("\n".join(lines) + "\n")

    def _replica(self, kind: str, *options: str) -> list[str]:
        return [f"  - type: {kind}", f"    name: {kind}", *(f"    {option}" for option in options)]

    def litestream(self, command: str, *arguments: str | Path) -> list[str]:
        return [str(LITESTREAM), command, "-config", str(self.folder / "litestream.yml"), *map(str, arguments)]

    @contextmanager
    def replicating(self, end: signal.Signals = signal.SIGINT) -> Iterator[None]:
        """`litestream replicate`; interrupted, it ends when it has archived what was written."""
        with (
            (self.folder / "litestream.log").open("ab") as log,
            subprocess.Popen(self.litestream("replicate"), stdout=log, stderr=log) as process,
        ):
            try:
                yield
                process.send_signal(end)
                process.wait(DEADLINE_S)
            finally:
                process.kill()

    def run(self) -> None:
        """Write to all databases while they are replicated, then note how they are."""
        with self.replicating():
            for name, page_size in PAGE_SIZES.items():
                with closing(sqlite3.connect(self.path(name), timeout=DEADLINE_S)) as db:
                    db.execute(f"pragma page_size = {page_size}")
                    db.execute("pragma journal_mode = wal")
            # All of them open to the end: the last connection to close would remove the WAL.
            opened = {name: sqlite3.connect(self.path(name), timeout=DEADLINE_S) for name in PAGE_SIZES}
            end = time.monotonic() + DEADLINE_S
            while not self.is_long_enough():
                assert time.monotonic() < end, (self.folder / "litestream.log").read_text()
                for name, db in opened.items():
                    self.commit(db, PAGE_SIZES[name])
                time.sleep(0.02)  # else it is all one segment
            opened["app"].execute("vacuum")
        self.ended_ms.append(int(time.time() * 1000))
        for name, db in opened.items():
            self.states.setdefault(name, []).append(self.checkpointed(name))
            db.close()

    def is_long_enough(self) -> bool:
        """Whether the newest generation of `app` has two snapshots and some WALs of several segments, everywhere."""
        for where in ("file", "s3"):
            with open_store(self.spec(where)) as store:
                files = list_generations(store)
            if len({file.generation for file in files}) <= len(self.ended_ms):
                return False
            newest = plan_generation(files)[0].generation
            files = [file for file in files if file.generation == newest]
            segments = [file.index for file in files if not file.is_snapshot]
            if len(files) - len(segments) < 2 or len(set(segments)) < 4 or segments.count(segments[-1] - 1) < 3:
                return False
        return True

    def commit(self, db: sqlite3.Connection, page_size: int) -> None:
        with db:
            db.execute("create table if not exists t (a integer primary key, b blob)")
            for _ in range(self.generator.randrange(1, 8)):
                db.execute("insert into t (b) values (?)", (self.generator.randbytes(page_size // 2),))
            db.execute("delete from t where a % 9 = ?", (self.generator.randrange(9),))

    def checkpointed(self, name: str) -> bytes:
        """The database as it is once SQLite has checkpointed it; the original keeps its WAL."""
        copy = self.folder / "checkpointed.db"
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{self.path(name)}{suffix}", f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as db:
            assert db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
        return copy.read_bytes()

    def lose_continuity(self) -> None:
        """Restart every WAL while Litestream does not run: it must begin a new generation."""
        for name in PAGE_SIZES:
            with closing(sqlite3.connect(self.path(name))) as db:
                db.execute("create table while_nobody_looked (a)")
                db.commit()
                assert db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0

    def theirs(self, where: str, name: str, output: Path, *more: str) -> bytes:
        """What Litestream 0.3 itself restores."""
        output.unlink(missing_ok=True)
        command = self.litestream("restore", "-replica", where, "-o", output, *more, self.path(name))
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return output.read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


def make_site(folder: Path, server: S3Server, seed: int) -> Site:
    assert LITESTREAM.exists(), f"{LITESTREAM} is missing: `make test` installs it"
    site = Site(folder, server, random.Random(seed))
    site.write_config()
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: S3Server) -> Site:
    """Two runs, and so two generations."""
    made = make_site(tmp_path_factory.mktemp("site"), server, seed=3)
    made.run()
    made.lose_continuity()
    made.run()
    return made


@pytest.fixture
def copy(site: Site, tmp_path: Path) -> Path:
    """The directory archive of `app`, to be damaged."""
    return shutil.copytree(site.folder / "archive" / "app", tmp_path / "archive")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "ours.db"


@pytest.fixture(params=["file", "s3"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_directory_and_s3_have_one_layout_and_every_name_is_known(site: Site, where: str) -> None:
    with open_store(site.spec(where)) as store:
        files = list_generations(store)
        assert [file.key for file in files] == [found.key for found in store.list()]
    generations = {file.generation for file in files}
    assert len(generations) == 2
    for generation in generations:
        places = [file.place for file in files if file.generation == generation]
        assert len({index for index, _ in places}) > 2
        assert any(offset > 0 for _, offset in places)


def test_the_newest_state_is_what_litestream_restores(site: Site, where: str, out: Path, tmp_path: Path) -> None:
    with open_store(site.spec(where)) as store:
        report = restore(store, out, integrity_check="full")
    assert out.read_bytes() == site.theirs(where, "app", tmp_path / "theirs.db")
    assert out.read_bytes() == site.states["app"][-1]
    assert report.restored is not None
    assert report.restored.files > 1


@pytest.mark.parametrize("name", ["small", "big"])
def test_the_smallest_and_the_largest_pages_are_restored(site: Site, name: str, out: Path) -> None:
    with open_store(site.spec("file", name)) as store:
        report = restore(store, out, integrity_check="full")
    assert report.restored is not None
    assert report.restored.page_size == PAGE_SIZES[name]
    assert out.read_bytes() == site.states[name][-1]


def test_a_time_is_restored_as_litestream_does(site: Site, where: str, tmp_path: Path) -> None:
    with open_store(site.spec(where)) as store:
        times = comparable_times(list_generations(store))
        for at in random.Random(5).sample(times, 4):
            restore(store, tmp_path / "ours.db", timestamp_ms=at, force=True)
            theirs = site.theirs(where, "app", tmp_path / "theirs.db", "-timestamp", format_moment(at))
            assert (tmp_path / "ours.db").read_bytes() == theirs, format_moment(at)


def test_between_two_generations_it_is_the_end_of_the_older(site: Site, where: str, out: Path) -> None:
    with open_store(site.spec(where)) as store:
        restore(store, out, timestamp_ms=site.ended_ms[0])
    assert out.read_bytes() == site.states["app"][0] != site.states["app"][1]


def test_a_missing_segment_is_named(copy: Path, out: Path) -> None:
    with open_store(str(copy)) as store:
        plan = long_plan(store)
        gone = next(file for file, after in pairwise(plan) if file.offset and after.offset)
        store.delete([gone.key])
        with pytest.raises(GenerationGap) as caught:
            restore(store, out)
    assert caught.value.missing == gone.key
    assert not out.exists()


def test_a_flipped_byte_is_damage_of_its_file(copy: Path, out: Path) -> None:
    with open_store(str(copy)) as store:
        plan = long_plan(store)
        for file in (plan[1], plan[len(plan) // 2], plan[-1]):
            with flipped(copy / file.key), pytest.raises(DamagedFile) as caught:
                restore(store, out)
            assert caught.value.file.key == file.key
        restore(store, out)


def test_a_damaged_snapshot_is_gone_around_by_an_older_one(copy: Path, site: Site, out: Path) -> None:
    with open_store(str(copy)) as store:
        newest = plan_generation(list_generations(store))[0]
        with flipped(copy / newest.key):
            report = restore(store, out)
    older = report.plan[0]
    assert report.went_around[0] == newest.key
    assert isinstance(older, GenerationFile)
    assert older.index < newest.index
    assert out.read_bytes() == site.states["app"][-1]


def test_an_encrypted_archive_is_named_as_such(site: Site, out: Path) -> None:
    with open_store(site.spec("file", "secret")) as store, pytest.raises(ConfigError, match="encrypted with age"):
        restore(store, out)


def test_the_command_restores_it(site: Site, out: Path) -> None:
    done = walcast("restore", site.spec("s3").url, "-o", out, env=site.server.environment())
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == site.states["app"][-1]
    refused = walcast("restore", site.spec("file").url, "-o", out, "--txid", f"{1:016x}", "--force")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "no TXIDs" in refused.stderr


@pytest.mark.slow
def test_every_segment_of_a_long_history_with_crashes(tmp_path: Path, server: S3Server, seed: int) -> None:
    """Litestream is killed again and again, and goes on in its generation or begins another."""
    site = make_site(tmp_path, server, seed)
    for _ in range(4):
        with closing(sqlite3.connect(site.path("app"), timeout=DEADLINE_S)) as db:
            for _ in range(3):
                with site.replicating(signal.SIGKILL):
                    for _ in range(site.generator.randrange(20, 60)):
                        site.commit(db, 4096 * site.generator.choice((1, 1, 1, 20)))
                        time.sleep(site.generator.random() * 0.03)
            site.run()
        with open_store(site.spec("file")) as store:
            restore(store, tmp_path / "ours.db", force=True, integrity_check="full")
            assert (tmp_path / "ours.db").read_bytes() == site.states["app"][-1]
            times = comparable_times(list_generations(store))
            for at in site.generator.sample(times, min(40, len(times))):
                restore(store, tmp_path / "ours.db", timestamp_ms=at, force=True)
                theirs = site.theirs("file", "app", tmp_path / "theirs.db", "-timestamp", format_moment(at))
                assert (tmp_path / "ours.db").read_bytes() == theirs, format_moment(at)


def long_plan(store: Store) -> list[GenerationFile]:
    """From the first snapshot of the newest generation; the others are removed."""
    newest = plan_generation(list_generations(store))[0].generation
    snapshots = [file.key for file in list_generations(store) if file.is_snapshot and file.generation == newest]
    store.delete(snapshots[1:])
    return plan_generation(list_generations(store))


def comparable_times(files: list[GenerationFile]) -> list[int]:
    """Times, ms, at which both programs see the same files.

    Litestream reads a directory's times to the nanosecond, and after a generation's last file it finds no generation.
    """
    usable = [file for file in files if plan_at(files, file.timestamp_ms + 1)]
    usable.sort(key=lambda file: file.timestamp_ms)
    return [
        file.timestamp_ms + 1
        for file, after in pairwise(usable)
        if after.timestamp_ms > file.timestamp_ms + 1 and after.generation == file.generation
    ]


def plan_at(files: list[GenerationFile], timestamp_ms: int) -> list[GenerationFile]:
    try:
        return plan_generation(files, timestamp_ms=timestamp_ms)
    except ConfigError:
        return []


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """One bit of the file's middle is wrong meanwhile; its time stays."""
    status, body = path.stat(), path.read_bytes()
    bad = bytearray(body)
    bad[len(body) // 2] ^= 16
    try:
        path.write_bytes(bad)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        yield
    finally:
        path.write_bytes(body)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
