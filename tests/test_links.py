"""A path that is a symbolic link names the database behind it, for every command and for the library."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.nodes import follower, poll, primary
from support.nodes import walcast as command

import walcast
from walcast.statedir import SUFFIX, state_dir


@dataclass
class Laid:
    """A release with a link to the database, as deployment tools lay it out, and the leftovers of an older walcast."""

    file: Path
    link: Path
    address: str


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laid]:
    root = tmp_path_factory.mktemp("app")
    file, release = root / "shared" / "app.db", root / "releases" / "1"
    file.parent.mkdir()
    release.mkdir(parents=True)
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
    link = release / "app.db"
    link.symlink_to("../../shared/app.db")
    (release / f"app.db{SUFFIX}").mkdir(mode=0o700)  # beside the link, where it means nothing
    with primary(link) as node:
        yield Laid(file, link, node.address)


def test_the_state_of_a_database_is_beside_the_file(laid: Laid) -> None:
    assert state_dir(laid.link) == state_dir(laid.file) == laid.file.with_name(f"app.db{SUFFIX}")


def test_the_library_asks_the_database_behind_a_link(laid: Laid) -> None:
    assert poll(lambda: walcast.Replica(laid.link).state() == "primary", 10)
    walcast.Replica(laid.link).wait_for(walcast.Primary(laid.link).barrier(), timeout=5)


def test_a_file_name_alone_is_a_path(laid: Laid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(laid.link.parent)
    assert walcast.Primary("app.db").barrier() >= "1-1"
    with pytest.raises(walcast.ConfigError, match=r"\./later\.db"):
        walcast.Primary("later.db").barrier()


def test_commands_take_a_link(laid: Laid, tmp_path: Path) -> None:
    done = command("snapshot", laid.link, tmp_path / "archive", "--json")
    assert done.returncode == 0, done.stderr
    shown = [json.loads(command("status", path, "--json").stdout) for path in (laid.link, laid.file)]
    assert [facts["role"] for facts in shown] == ["primary", "primary"]
    assert not list((laid.link.parent / f"app.db{SUFFIX}").iterdir())


def test_a_replica_behind_a_link_is_one_replica(laid: Laid, tmp_path: Path) -> None:
    file, link = tmp_path / "disk" / "r.db", tmp_path / "r.db"
    with follower(file, laid.address):
        link.symlink_to(file)
        txid = f"{walcast.Primary(laid.file).barrier()}"
        for arguments in (("wait", link, txid), ("verify", link, "--primary", laid.address), ("status", link)):
            done = command(*arguments)
            assert done.returncode == 0, (arguments, done.stderr)
    assert not (tmp_path / f"r.db{SUFFIX}").exists()


def test_a_link_that_moves_leads_to_another_replica(tmp_path: Path) -> None:
    link = tmp_path / "app.db"
    for name in ("one.db", "two.db"):
        (tmp_path / name).touch()
    link.symlink_to("one.db")
    replica = walcast.Replica(link)
    with pytest.raises(walcast.Unavailable, match=r"one\.db"):
        replica.position()
    link.unlink()
    link.symlink_to("two.db")
    with pytest.raises(walcast.Unavailable, match=r"two\.db"):
        replica.position()
