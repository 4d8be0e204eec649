"""The life of a product in containers: volumes, what its app was told, and what went to the store.

An app (`container_app.py`) says on standard error which rows are committed and which position covers them. What is kept
of that is compared with what a database or the archive has.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.container import DATA, USER
from support.container_app import FILL_ROW_BYTES
from support.nodes import LOOPBACK, TESTS, Node, poll, walcast
from support.s3 import CountedS3, counted_s3

from walcast import local
from walcast.errors import WalcastError
from walcast.restore import restore
from walcast.store import open_store

STOP_S = 10.0  # between Docker's SIGTERM and its SIGKILL
DB = DATA / "app.db"
KILL_S = 3.0
PAGE_BYTES = 4096 + 128  # of a page that does not compress, in LZ4 and in LTX
PAGES_A_ROW = 1.2  # its leaf; every 80 rows or so a new leaf, the page above it and page 1
FILE_BYTES = 1024  # headers, index and trailer of one LTX file at most, or an object beside them
TIMES_SENT = 2  # as a transaction, and once more by the first level of compaction
ROW, AT = re.compile(r"^row (\d+) (\w+)$"), re.compile(r"^at (\d+) (\d+)$")


def check_possible() -> None:
    """Skip the test where no container can be made."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"], check=False).returncode:
        pytest.skip("needs root, and namespaces")


@dataclass
class Container:
    """A walcast, as process 1, and its volume."""

    id: str
    life: Life
    node: Node
    said: int = 0

    @property
    def volume(self) -> Path:
        return self.life.folder / f"volume-{self.id}"

    @property
    def db(self) -> Path:
        return self.volume / DB.name

    @property
    def address(self) -> str:
        """The same one after each start."""
        said = self.node.events("listening") if self.node.starts else []
        return str(said[-1]["address"]) if said else LOOPBACK

    def start(self, *arguments: str, ready: bool = True) -> Container:
        """A new process on the volume as it is."""
        self.node.arguments = [str(self.volume), *arguments, "--json", "--log-format", "json"]
        self.node.start()
        if ready:
            self.node.ready()
        return self

    def start_primary(self, *, app: bool = True, ready: bool = True) -> Container:
        run = ("--exec", self.life.app) if app else ()
        return self.start("primary", str(DB), self.life.url, "--restore", "--listen", self.address, *run, ready=ready)

    def start_follower(self, primary: Container) -> Container:
        self.start("follower", str(DB), "--primary", primary.address, "--archive", self.life.url, "--id", self.id,
                   "--listen", self.address, "--exec", self.life.app)  # fmt: skip
        assert poll(lambda: self.facts().get("state") == "streaming"), self.facts()
        return self

    def facts(self) -> dict[str, Any]:
        """Its database's status."""
        try:
            with local.ask(self.db, "status", timeout_s=5.0) as (answer, _):
                [database] = answer["databases"]
                return dict(database)
        except (WalcastError, OSError, ValueError):
            return {}

    def wait_archived(self) -> None:
        """Until something of it is."""
        assert poll(lambda: self.facts()["archive"]["txid"]), self.facts()

    def stop(self) -> int:
        """SIGTERM; it has ended in order before the SIGKILL would come."""
        began_s = time.monotonic()
        code = self.node.stop()
        assert time.monotonic() - began_s < STOP_S
        return code

    def kill(self) -> None:
        """SIGKILL for all that runs in it."""
        children = Path(f"/proc/{self.node.pid}/task/{self.node.pid}/children")
        os.kill(int(poll(children.read_text)), signal.SIGKILL)
        assert self.node.wait() == 128 + signal.SIGKILL

    def lose_volume(self) -> None:
        shutil.rmtree(self.volume)
        self.life.make_volume(self.volume)

    def rows(self) -> dict[int, str]:
        return rows_of(self.db)


@dataclass
class Life:
    """Of one product, with one archive."""

    folder: Path
    s3: CountedS3
    prefix: str
    fill_bytes: int
    told: dict[int, str] = field(default_factory=dict)
    covered: dict[int, int] = field(default_factory=dict)  # by TXID, the newest row that is in it
    containers: list[Container] = field(default_factory=list)
    new: int = 0  # rows that were committed since the first boot
    booted_s: float = 0.0
    archived: int = 0  # the newest row that a status said is archived

    @property
    def url(self) -> str:
        return self.s3.url(self.prefix)

    @property
    def app(self) -> str:
        return f"{sys.executable} {TESTS}/support/container_app.py {DB} {self.fill_bytes}"

    def sent(self) -> tuple[int, int]:
        """Bytes and objects that were put into the store since the first boot."""
        traffic = self.s3.traffic
        return traffic.sent_bytes["PUT"] + traffic.sent_bytes["PART"], traffic.requests["PUT"] + traffic.requests[
            "PART"
        ]

    def make_volume(self, path: Path) -> None:
        path.mkdir()
        os.chown(path, USER, USER)

    def container(self) -> Container:
        """One more, with an empty volume; not started."""
        id_ = f"{self.prefix}-{len(self.containers)}"
        env = {**self.s3.environment(), "HOME": "/"}
        made = Container(id_, self, Node([], self.folder, id_, env, script="container.py"))
        self.containers.append(made)
        self.make_volume(made.volume)
        return made

    def listen(self) -> int:
        """Take up what apps have said since: how many rows that are committed."""
        rows = 0
        for container in self.containers:
            data = container.node.err.read_bytes()[container.said :] if container.node.err.exists() else b""
            container.said += data.rfind(b"\n") + 1
            for line in data[: data.rfind(b"\n") + 1].decode().splitlines():
                if found := ROW.match(line):
                    self.told[int(found[1])] = found[2]
                    rows += 1
                    self.new += 1
                elif found := AT.match(line):
                    self.covered[int(found[2])] = int(found[1])
        return rows

    def wait_rows(self, count: int) -> int:
        """Until the apps were told of so many rows more, and a position that covers them; how many it were."""
        made, before = 0, max(self.covered, default=0)

        def enough() -> bool:
            nonlocal made
            made += self.listen()
            return made >= count and max(self.covered, default=0) > before

        assert poll(enough), self.containers[-1].node.err.read_text()[-2000:]
        return made

    def kept(self, txid: int) -> int:
        """The newest row that a state at `txid` has for certain."""
        return max((row for at, row in self.covered.items() if at <= txid), default=0)

    def check(self, read: Callable[[], dict[int, str]], *, up_to: int | None = None) -> None:
        """Each row that an app was told of is there; those behind `up_to` may be gone, and are forgotten then."""
        self.listen()  # first: what is committed later need not be in what is read
        found = read()
        missing = {row for row, word in self.told.items() if found.get(row) != word}
        lost = sorted(row for row in missing if up_to is None or row <= up_to)
        assert not lost, f"{len(lost)} rows are lost: {lost[:10]} of {max(self.told)}, up to {up_to}"
        for row in missing:
            del self.told[row]
        self.covered = {at: row for at, row in self.covered.items() if row in self.told}

    def check_archive(self) -> None:
        """By a restore of what it has now; nothing is committed meanwhile."""
        copy = self.folder / f"{self.prefix}-copy.db"
        with open_store(self.s3.spec(self.prefix)) as store:
            restore(store, copy, force=True)
        self.check(lambda: rows_of(copy))


@contextmanager
def uploads(life: Life) -> Iterator[None]:
    """Only what is new is uploaded, from the first boot to the end of the block: the transactions of the rows that
    were committed, and what the first level of compaction makes of them; never the whole database. At most two objects
    a second, and a few for each start and stop."""
    sent_bytes, puts = life.sent()
    yield
    life.listen()
    starts = sum(container.node.starts for container in life.containers)
    sent, objects = life.sent()
    print(f"{objects - puts} PUTs of {sent - sent_bytes} bytes; of all {objects} of {sent} for {life.new} rows")
    assert sent - sent_bytes < life.fill_bytes
    assert objects <= 8 * starts + 2 * (time.monotonic() - life.booted_s)
    assert sent <= int(life.new * PAGES_A_ROW * PAGE_BYTES * TIMES_SENT) + objects * FILE_BYTES


def rows_of(db: Path) -> dict[int, str]:
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as read:
        assert read.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        return dict(read.execute("SELECT id, word FROM t"))


def has_rows(db: Path) -> bool:
    """Has its app made it, or a restore?"""
    try:
        return bool(rows_of(db))
    except sqlite3.OperationalError:
        return False


@contextmanager
def store_of_lives(folder: Path) -> Iterator[CountedS3]:
    """The store of all lives."""
    check_possible()
    with counted_s3(folder / "s3") as s3:
        yield s3


# The stages


def first_boot(life: Life) -> Container:
    """No database and an empty archive: the app makes it. Each of its pages is sent twice at most: in a snapshot, and
    as the transaction that came during it."""
    before, _ = life.sent()
    home = life.container().start_primary()
    home.node.wait_event("archived a snapshot")
    rows = life.wait_rows(20 + life.fill_bytes // FILL_ROW_BYTES)
    assert poll(lambda: life.kept(home.facts()["archive"]["txid"]) >= life.fill_bytes // FILL_ROW_BYTES)
    sent, _ = life.sent()
    assert life.fill_bytes <= sent - before <= 2.5 * life.fill_bytes + rows * PAGE_BYTES
    life.s3.traffic.sent_bytes.clear()
    life.s3.traffic.requests.clear()
    life.new, life.booted_s = rows, time.monotonic()
    return home


def deploy(life: Life, home: Container) -> None:
    """A new process on the same volume. Where its app does nothing, nothing at all is uploaded."""
    with uploads(life):
        assert home.stop() == 0
        life.check_archive()
        before = life.sent()
        home.start_primary(app=False)
        life.check(home.rows)
        assert home.stop() == 0
        assert life.sent() == before
        home.start_primary()
        life.wait_rows(20)


def crash(life: Life, home: Container) -> None:
    """All is killed; what was committed is on the volume."""
    with uploads(life):
        home.kill()
        home.start_primary()
        life.check(home.rows)
        life.wait_rows(20)


def fail_over(life: Life, home: Container, *, planned: bool) -> Container:
    """To a follower in a container of its own. Planned, nothing is lost; else what neither it nor the archive had."""
    with uploads(life):
        away = life.container().start_follower(home)
        life.wait_rows(10)
        if planned:
            done = walcast("promote", away.db)
            assert done.returncode == 0, done.stderr
            assert home.stop() == 0
            life.check(away.rows)
        else:
            facts = home.facts()
            [follower] = facts["followers"]
            kept = life.kept(max(facts["archive"]["txid"], follower["applied_txid"]))
            home.kill()
            done = walcast("promote", away.db, "--force")
            assert done.returncode == 0, done.stderr
            life.check(away.rows, up_to=kept)
            home.start_primary(app=False)  # it is back, and does not know
            assert poll(lambda: home.facts().get("state") == "streaming"), home.facts()
            life.check(home.rows, up_to=kept)
            assert home.stop() == 0
        life.wait_rows(20)
    home.lose_volume()
    return away


def lose_volume(life: Life, home: Container, *, planned: bool) -> None:
    """A start on an empty disk goes on with the history of the archive."""
    with uploads(life):
        if planned:
            home.stop()
            kept = None
        else:
            kept = life.kept(home.facts()["archive"]["txid"])
            home.kill()
        home.lose_volume()
        home.start_primary()
        life.check(home.rows, up_to=kept)
        life.wait_rows(20)


def kill_at_any_moment(life: Life, home: Container, rng: random.Random) -> None:
    """After its start, whatever it does then; the volume stays, or is lost."""
    home.start_primary(ready=False)
    time.sleep(rng.uniform(0.0, KILL_S))
    life.listen()
    life.archived = max(life.archived, life.kept(home.facts().get("archive", {}).get("txid", 0)))
    home.kill()
    lost = rng.random() < 0.4
    if lost:
        home.lose_volume()
    home.start_primary()
    assert poll(lambda: has_rows(home.db))
    life.check(home.rows, up_to=life.archived if lost else None)
    home.kill()


@contextmanager
def life(folder: Path, s3: CountedS3, prefix: str, *, fill_bytes: int) -> Iterator[Life]:
    """One with an archive of its own; what still runs at the end is ended."""
    made = Life(folder, s3, prefix, fill_bytes)
    try:
        yield made
    finally:
        for container in made.containers:
            container.node.end()


def come_to_an_end(life: Life, home: Container) -> None:
    """In order; the archive has all of it."""
    assert home.stop() == 0
    life.check_archive()
    done = walcast("verify", life.url, env=life.s3.environment())
    assert done.returncode == 0, done.stderr
