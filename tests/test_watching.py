"""Watched folders: databases that come and go under a running primary, and what goes wrong with single ones."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.folders import rows, serving, status, wait_served, write
from support.nodes import barrier, follower, poll

from walcast import wire
from walcast.archive.identity import read_archive_id
from walcast.errors import ConfigError, Stopped, Unavailable
from walcast.identity import read_database_id
from walcast.restore import restore
from walcast.statedir import state_dir
from walcast.store import open_store
from walcast_node.config.configuration import load_config
from walcast_node.config.settings import DatabaseSettings, HostSettings
from walcast_node.process import limits
from walcast_node.process.folders import Found
from walcast_node.process.health import Failure, FailureKind
from walcast_node.process.host import Host
from walcast_node.process.inotify_folders import Notices
from walcast_node.process.open_inodes import Inodes
from walcast_node.process.serving import Serving
from walcast_primary.transaction_log.transaction_log import TransactionLog

CONFIG = """\
dbs:
- dir: {tmp}/data
  pattern: '*.db'
  recursive: true
  watch: true
  replica: {{path: {tmp}/archive}}
"""


def configured(tmp_path: Path, text: str = CONFIG) -> Path:
    (tmp_path / "data").mkdir(exist_ok=True)
    file = tmp_path / "walcast.yml"
    file.write_text(text.format(tmp=tmp_path))
    return file


def make_broken(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"garbage " * 600)
    os.utime(path, (1, 1))  # nobody is copying it there any more


def replace(new: Path, old: Path) -> None:
    """As a restore does it: the side files belong to what was there."""
    for side in ("-wal", "-shm"):
        Path(f"{old}{side}").unlink(missing_ok=True)
    new.replace(old)


def http(address: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_databases_come_and_go_and_the_others_do_not_notice(tmp_path: Path) -> None:
    data, edge = tmp_path / "data", tmp_path / "edge"
    write(data / "one.db", 1)
    with serving(configured(tmp_path)) as node, follower(edge / "one.db", node.address) as one:
        assert node.facts["databases"] == ["one"]  # type: ignore[attr-defined]
        write(data / "tenants" / "42.db", 42)
        (data / "junk.db").write_text("not a database, but longer than the magic bytes of one")
        (data / "empty.db").touch()
        write(data / ".hidden.db", 1)
        wait_served(node, "one", "tenants/42")
        write(data / "empty.db", 7)  # gets its first page
        wait_served(node, "empty", "one", "tenants/42")

        with follower(edge / "42.db", node.address, "--name", "tenants/42") as other:
            write(data / "tenants" / "42.db", 43)
            assert poll(lambda: rows(edge / "42.db") == [42, 43])
            assert poll(lambda: status(node)["tenants/42"]["archive"]["txid"] >= 2)
            shutil.rmtree(data / "tenants")
            assert poll(lambda: "no database 'tenants/42' here" in other.err.read_text())
            assert "was removed" in other.err.read_text()
            assert rows(edge / "42.db") == [42, 43]  # the replica stays, and its follower waits for it to come back
            assert other.running
        wait_served(node, "empty", "one")
        with open_store(str(tmp_path / "archive" / "tenants" / "42.db")) as store:
            restore(store, tmp_path / "restored.db")
        assert rows(tmp_path / "restored.db") == [42, 43]

        write(data / "one.db", 2)
        assert poll(lambda: rows(edge / "one.db") == [1, 2])
        assert not one.events("trying again")
        assert len(node.events("follower connected")) == 2  # each once

        write(data / "tenants" / "42.db", 44)  # the folder and the name again
        wait_served(node, "empty", "one", "tenants/42")
        # It is another database, whose followers are served; the archive is of the one before, and stays as it is.
        assert poll(lambda: "belongs to the database" in (status(node)["tenants/42"]["archive"]["error"] or ""))
        with open_store(str(tmp_path / "archive" / "tenants" / "42.db")) as store:
            restore(store, tmp_path / "restored.db", force=True)
        assert rows(tmp_path / "restored.db") == [42, 43]
        (tmp_path / "archive" / "tenants").rename(tmp_path / "archive" / "former-tenants")
        assert poll(lambda: status(node)["tenants/42"]["archive"]["error"] is None)


def test_one_that_fails_is_trouble_of_its_own_and_tried_again(tmp_path: Path) -> None:
    data, edge = tmp_path / "data", tmp_path / "edge"
    write(data / "good.db", 1)
    make_broken(data / "bad.db")
    with serving(configured(tmp_path), "--http", "127.0.0.1:0") as node:
        address = node.facts["http"]  # type: ignore[attr-defined]
        assert node.facts["databases"] == ["good"]  # type: ignore[attr-defined]
        assert status(node)["bad"]["archive"]["error"].startswith("not served: ")
        code, body = http(address, "/healthz")
        assert code == 503
        assert "bad.db" in body["error"]
        assert body["failure"] == "not-served"
        assert {database["name"] for database in http(address, "/status")[1]["databases"]} == {"good", "bad"}

        with follower(edge / "bad.db", node.address, "--name", "bad", wait=False) as copy:
            copy.wait_event("trying again")  # refused for now, not for good
            write(tmp_path / "better.db", 5)
            replace(tmp_path / "better.db", data / "bad.db")
            assert poll(lambda: rows(edge / "bad.db") == [5])
            assert http(address, "/healthz")[0] == 200
            assert len(node.events("cannot serve, trying again")) == 1

            write(tmp_path / "best.db", 6, 7)
            replace(tmp_path / "best.db", data / "bad.db")
            assert poll(lambda: rows(edge / "bad.db") == [6, 7])
            assert copy.running
        assert "bad.db" in node.wait_event("let go")["reason"]
        assert status(node)["bad"]["txid"] > 1  # the history went on: no TXID is given twice
        assert [event["database"] for event in node.events("serving")] == ["good", "bad", "bad"]


async def served_now(config: Path, stop: asyncio.Event, wanted: list[str]) -> Host:
    """A primary of this process over a watched folder, from when it serves `wanted` until `stop` is set."""
    role = Host(HostSettings([], wire.Address("127.0.0.1", 0), folders=load_config(config).folders))
    running = asyncio.create_task(role.run(stop, lambda role: None))
    async with asyncio.timeout(20):
        while role.names != wanted:
            await asyncio.sleep(0.02)
        stop.set()
        await running
    return role


def test_what_comes_between_the_look_and_the_watch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, late = Notices.watch, [tmp_path / "data" / "late.db", tmp_path / "data" / "sub" / "later.db"]
    write(tmp_path / "app.db", 1)

    def slow_watch(self: Notices, found: Found) -> bool:
        if late:
            path = late.pop(0)
            path.parent.mkdir(exist_ok=True)
            (tmp_path / "app.db").rename(path) if path.name == "later.db" else shutil.copy(tmp_path / "app.db", path)
        return watch(self, found)

    monkeypatch.setattr(Notices, "watch", slow_watch)
    asyncio.run(served_now(configured(tmp_path), asyncio.Event(), ["late", "sub/later"]))


def test_more_than_fit_wait_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_DATABASES", 2)
    config = load_config(configured(tmp_path))
    for name in "abcd":
        write(tmp_path / "data" / f"{name}.db", 1)
    seen: dict[str, object] = {}

    async def run() -> None:
        stop = asyncio.Event()
        role = Host(HostSettings([], wire.Address("127.0.0.1", 0), folders=config.folders))

        def ready(role: Host) -> None:
            seen.update(names=role.names, failure=role.failures(), heartbeat=role.heartbeat_trouble())
            (tmp_path / "data" / "a.db").unlink()

        running = asyncio.create_task(role.run(stop, ready))
        async with asyncio.timeout(20):
            while role.names != ["b", "c"]:
                await asyncio.sleep(0.02)
            stop.set()
            await running

    asyncio.run(run())
    more = "2 databases more than one primary serves"
    assert seen == {"names": ["a", "b"], "failure": [Failure(FailureKind.NOT_SERVED, more, "")], "heartbeat": more}


@pytest.mark.parametrize(
    ("hard", "most"), [(resource.RLIM_INFINITY, 1000), (1 << 20, 1000), (4096, 192), (1024, 38), (64, 1)]
)
def test_no_more_are_served_than_there_are_descriptors_for(
    hard: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (hard, hard))
    assert limits.capacity() == most


def test_files_are_not_closed_under_whoever_reads_them(tmp_path: Path) -> None:
    """A copy may run in another thread; the numbers of closed descriptors soon belong to other files."""
    write(tmp_path / "app.db", *range(10))

    async def run() -> None:
        inodes = Inodes()
        serving = await Serving.open(
            DatabaseSettings(tmp_path / "app.db", "app"),
            inodes,
            log_bytes=1 << 20,
            log_age_s=60.0,
            on_failure=lambda failure: None,
        )
        fd = serving.database.files.db_fd
        with serving.database.reading() as read:
            assert len(read(1, 1)) == 4096
            closing = asyncio.create_task(serving.close(inodes, Stopped("removed")))
            async with asyncio.timeout(10):
                while not serving.database.leaving:
                    await asyncio.sleep(0.01)
            with pytest.raises(Unavailable, match="removed"):
                read(1, 1)
            done, _ = await asyncio.wait([closing], timeout=0.2)
            assert not done
            os.fstat(fd)
            assert inodes.holder(serving.inode) == "app"
        await closing
        assert inodes.holder(serving.inode) is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        with pytest.raises(Unavailable, match="removed"), serving.database.reading():
            pass

    asyncio.run(run())


def test_what_failed_to_open_leaves_nothing_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "app.db", 1)
    inodes = Inodes()

    async def open_it() -> Serving:
        return await Serving.open(
            DatabaseSettings(tmp_path / "app.db", "app"),
            inodes,
            log_bytes=1 << 20,
            log_age_s=60.0,
            on_failure=lambda failure: None,
        )

    def fail(*arguments: object, **named: object) -> TransactionLog:
        raise OSError(5, "Input/output error")

    async def run() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(TransactionLog, "open", fail)
            with pytest.raises(OSError, match="Input/output"):
                await open_it()
        serving = await open_it()  # the state folder is not locked, the file not held
        with pytest.raises(ConfigError, match="is the same file as the database 'app'"):
            await open_it()
        await serving.close(inodes)

    asyncio.run(run())


@pytest.mark.slow
def test_one_that_moves_is_served_under_its_new_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "old.db", 1, 2)
    with serving(configured(tmp_path)) as node:
        for side in ("", "-wal"):
            (data / f"old.db{side}").rename(data / f"new.db{side}")
        (data / "old.db-shm").unlink()
        wait_served(node, "new")
        write(data / "new.db", 3)
        assert poll(lambda: status(node)["new"]["archive"]["txid"] >= 2)
        with open_store(str(tmp_path / "archive" / "new.db")) as store:
            restore(store, tmp_path / "moved.db")
        assert rows(tmp_path / "moved.db") == [1, 2, 3]

        data.rename(tmp_path / "gone")
        wait_served(node)
        assert node.running


@pytest.mark.slow
def test_one_whose_capture_ends_is_let_go_and_taken_up_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "good.db", 1)
    write(data / "bad.db", 1)
    with serving(configured(tmp_path)) as node:
        for _ in range(2):
            (data / "bad.db-wal").unlink()
            # "removed", or "replaced" where something has opened the database in the meantime, which makes it anew
            assert "bad.db-wal was re" in node.wait_event("let go", 1)["reason"]
            wait_served(node, "good", "bad")
        txid = status(node)["bad"]["txid"]
        write(data / "bad.db", 2)
        write(data / "good.db", 2)
        assert poll(lambda: status(node)["bad"]["txid"] > txid)
        assert poll(lambda: status(node)["good"]["txid"] == 2)
        assert [event["database"] for event in node.events("serving")].count("good") == 1


@pytest.mark.slow
def test_the_capture_of_one_that_is_listed_ends_the_process(tmp_path: Path) -> None:
    write(tmp_path / "data" / "app.db", 1)
    text = "dbs:\n- path: {tmp}/data/app.db\n- {{dir: {tmp}/data, pattern: '*.db', watch: true}}\n"
    with serving(configured(tmp_path, text)) as node:
        assert node.facts["databases"] == ["app"]  # type: ignore[attr-defined]
        assert list(status(node)) == ["app"]
        (tmp_path / "data" / "app.db-wal").unlink()
        assert node.wait(20) == 1
        assert node.err.read_text().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_whatever_comes_and_goes_what_is_there_is_served_in_the_end(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data, value = tmp_path / "data", 0
    (data / "sub").mkdir(parents=True)
    names = [f"{folder}{letter}.db" for folder in ("", "sub/", "sub/deep/") for letter in "abc"]
    expected: dict[str, list[int]] = {}

    def drop(path: Path) -> None:
        for side in ("", "-wal", "-shm"):
            Path(f"{path}{side}").unlink(missing_ok=True)

    with serving(configured(tmp_path)) as node:
        for _ in range(150):
            name = rng.choice(names)
            path, value = data / name, value + 1
            match rng.choice(["write", "write", "drop", "replace", "folder", "wait"]):
                case "write":
                    write(path, value)
                    expected[name] = [*expected.get(name, []), value]
                case "drop":
                    drop(path)
                    expected.pop(name, None)
                case "replace":
                    write(tmp_path / "new.db", value)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    drop(path)
                    (tmp_path / "new.db").replace(path)
                    expected[name] = [value]
                case "folder":
                    shutil.rmtree(data / "sub", ignore_errors=True)
                    expected = {name: values for name, values in expected.items() if "/" not in name}
                case "wait":
                    there = {name.removesuffix(".db") for name in expected}
                    poll(lambda there=there: set(status(node)) == there, rng.random() * 2)
        assert {name: rows(data / name) for name in expected} == expected
        wait_served(node, *(name.removesuffix(".db") for name in expected), seconds=90.0)
        for name in expected:
            barrier(node.address, name.removesuffix(".db"))
        assert node.stop() == 0
    for name, values in expected.items():
        with open_store(str(tmp_path / "archive" / name)) as store:
            if read_archive_id(store) != read_database_id(state_dir(data / name)):
                assert name.startswith(
                    "sub/"
                )  # its state folder went with `sub`: to the archive it is another database
                continue
            restore(store, tmp_path / "restored" / name)
        assert rows(tmp_path / "restored" / name) == values, name
