"""`walcast repair`: what a node believes to be, shown and mended by hand, with confirmation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.nodes import Node, poll, walcast
from support.replica_set import create_database

from walcast.errors import WalcastError
from walcast.statedir import state_dir
from walcast.store import open_store
from walcast.terms import FOLLOWER, PRIMARY, Standing, read_standing, write_standing
from walcast_node.failover.lease import KEY, Lease

ABSURD = 2**32 - 1


def primary(db: Path, *more: str) -> Node:
    arguments = ["primary", str(db), *more, "--listen", "127.0.0.1:0", "--json", "--log-format", "json"]
    return Node(arguments, db.parent, "primary")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A database that a primary has served."""
    db = tmp_path / "app.db"
    create_database(db)
    node = primary(db).start()
    node.ready()
    assert node.stop() == 0
    return db


def repair(db: Path, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return walcast("repair", db, *arguments, answer=answer)


def test_it_shows_role_file_log_and_lease_and_changes_nothing(stopped: Path) -> None:
    write_standing(state_dir(stopped), Standing(PRIMARY, 3))
    before = {file: file.read_bytes() for file in state_dir(stopped).rglob("*") if file.is_file()}
    facts = json.loads(repair(stopped, "--archive", str(stopped.parent / "archive"), "--json").stdout)
    assert facts["role_file"] == {"role": "primary", "term": 3, "primary": "", "lease": False, "terms_known": 0}
    assert facts["log"]["term"] == 1
    assert (facts["in_use"], facts["journal"]) == (False, None)
    assert "error" in facts["lease"]  # there is no such archive
    assert not (stopped.parent / "archive").exists()
    assert {file: file.read_bytes() for file in state_dir(stopped).rglob("*") if file.is_file()} == before


def test_an_absurd_term_in_the_role_file_is_mended_and_the_node_serves_again(stopped: Path) -> None:
    write_standing(state_dir(stopped), Standing(FOLLOWER, ABSURD, "192.0.2.9:1"))
    assert repair(stopped, "--role", "primary", "--term", "1", "--yes").returncode == 0
    assert read_standing(state_dir(stopped)) == Standing(PRIMARY, 1)
    [kept] = state_dir(stopped).glob("role.before-*")
    assert str(ABSURD) in kept.read_text()
    node = primary(stopped).start()
    try:
        assert node.ready()["role"] == "primary"
        said = repair(stopped, "--role", "follower", "--yes")  # while it runs
        assert said.returncode == 1
        assert json.loads(repair(stopped, "--json").stdout)["in_use"] is True
    finally:
        node.end()
    assert read_standing(state_dir(stopped)) == Standing(PRIMARY, 1)


def test_a_damaged_role_file_is_replaced(stopped: Path) -> None:
    (state_dir(stopped) / "role").write_bytes(b"\0" * 40)
    assert "error" in json.loads(repair(stopped, "--json").stdout)["role_file"]
    said = repair(stopped, "--role", "follower", "--term", "2", "--primary", "127.0.0.1:7420", "--yes")
    assert said.returncode == 0
    assert read_standing(state_dir(stopped)) == Standing(FOLLOWER, 2, "127.0.0.1:7420")


@pytest.mark.parametrize("answer", ["n\n", "", "\n"])
def test_without_a_yes_nothing_is_written(stopped: Path, answer: str) -> None:
    said = repair(stopped, "--role", "follower", "--term", "9", answer=answer)
    assert said.returncode == 1
    assert "role_file" in said.stderr
    assert read_standing(state_dir(stopped)) is None or read_standing(state_dir(stopped)) == Standing(PRIMARY, 1)


@pytest.mark.parametrize("arguments", [["--holder", "x"], ["--lease-term", "2"], ["--term", "0"]])
def test_what_is_incomplete_is_wrong_usage(stopped: Path, arguments: list[str]) -> None:
    assert repair(stopped, *arguments).returncode == 2


def test_what_a_followers_environment_says_makes_a_look_no_change(stopped: Path) -> None:
    before = read_standing(state_dir(stopped))
    env = {"WALCAST_PRIMARY": "192.0.2.9:1", "WALCAST_LEASE_TIME": "3", "WALCAST_ARCHIVE": str(stopped.parent / "no")}
    said = walcast("repair", stopped, "--json", env=env)
    assert said.returncode == 0, said.stderr
    assert "error" in json.loads(said.stdout)["lease"]  # no such archive
    assert read_standing(state_dir(stopped)) == before


def test_where_no_process_ever_ran_there_is_nothing_to_repair(tmp_path: Path) -> None:
    create_database(tmp_path / "app.db")
    assert repair(tmp_path / "app.db").returncode == 1


def test_a_lease_that_no_node_can_read_is_replaced_and_the_set_goes_on(tmp_path: Path) -> None:
    db, archive = tmp_path / "app.db", tmp_path / "archive"
    create_database(db)
    node = primary(db, str(archive), "--auto-failover", "--lease-time", "1", "--id", "a").start()
    try:
        address = node.ready()["listen"]
        with open_store(str(archive)) as store:

            def spoil() -> bool:  # it is renewed meanwhile
                found = store.read(KEY)
                assert found is not None
                try:
                    store.swap(KEY, b"garbage", found.version)
                except WalcastError:
                    return False
                return True

            assert poll(spoil)
            shown = json.loads(repair(db, "--archive", str(archive), "--json").stdout)
            assert "error" in shown["lease"]
            to = ["--archive", str(archive), "--lease-term", "2", "--lease-time", "1", "--yes"]
            assert repair(db, *to).returncode == 1  # whom shall it name
            said = repair(db, *to, "--holder", "a", "--address", address)
            assert said.returncode == 0, said.stderr
            status = lambda: json.loads(walcast("status", address, "--json").stdout)  # noqa: E731
            assert poll(lambda: status()["databases"][0]["role"] == "primary", every_s=0.2)
            found = store.read(KEY)
            assert found is not None
            assert Lease.decode(found.data).term >= 2
    finally:
        node.end()
