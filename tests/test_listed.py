"""A configuration file with several databases: what is wrong with one of them stops none of the others."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.folders import serving, status, wait_served, write
from support.nodes import poll, primary, walcast

from walcast.statedir import state_dir
from walcast.store import open_store
from walcast.terms import PRIMARY, Standing, write_standing
from walcast_node.cli import main


def configured(tmp_path: Path, *names: str) -> Path:
    file = tmp_path / "walcast.yml"
    entries = (f"- path: {tmp_path}/{name}.db\n  replica: {{path: {tmp_path}/archive/{name}}}\n" for name in names)
    file.write_text("dbs:\n" + "".join(entries))
    return file


def archived(tmp_path: Path, name: str) -> bool:
    with open_store(str(tmp_path / "archive" / name)) as store:
        return any(list(store.list(store.level_prefix(9))))


def healthz(address: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=10.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_databases_that_cannot_be_served_stop_no_others_and_are_served_when_they_can_be(tmp_path: Path) -> None:
    write(tmp_path / "good.db", 1)
    (tmp_path / "garbage.db").write_bytes(b"no database at all " * 100)
    write(tmp_path / "removed.db", 1)
    config = configured(tmp_path, "good", "missing", "garbage", "removed")
    with serving(config, "--http", "127.0.0.1:0") as node:
        http = node.facts["http"]  # type: ignore[attr-defined]
        wait_served(node, "good", "removed")
        shown = status(node)
        assert shown["missing"]["trouble"]
        assert shown["missing"]["since"]
        assert shown["garbage"]["trouble"]
        assert healthz(http) == 503
        assert poll(lambda: archived(tmp_path, "good"), 10)

        for path in tmp_path.glob("removed.db*"):
            if path.is_file():
                path.unlink()
        assert poll(lambda: status(node)["removed"]["trouble"], 10, 0.05)
        write(tmp_path / "missing.db", 1)
        wait_served(node, "good", "missing")

        (tmp_path / "garbage.db").unlink()
        write(tmp_path / "garbage.db", 1)
        write(tmp_path / "removed.db", 2)
        wait_served(node, "garbage", "good", "missing", "removed")
        assert poll(lambda: healthz(http) == 200, 10, 0.05)
        write(tmp_path / "good.db", 2)  # which was served all the time
        assert status(node)["good"]["trouble"] is None


def test_a_folder_in_the_place_of_a_database_stops_no_others(tmp_path: Path) -> None:
    write(tmp_path / "good.db", 1)
    (tmp_path / "locked.db").mkdir()
    with serving(configured(tmp_path, "good", "locked")) as node:
        wait_served(node, "good")
        assert status(node)["locked"]["trouble"]
        (tmp_path / "locked.db").rmdir()
        write(tmp_path / "locked.db", 1)
        wait_served(node, "good", "locked")


def test_a_link_to_nothing_and_a_damaged_role_stop_no_others(tmp_path: Path) -> None:
    for name in ("good", "damaged"):
        write(tmp_path / f"{name}.db", 1)
    (tmp_path / "linked.db").symlink_to("volume/linked.db")
    role = state_dir(tmp_path / "damaged.db") / "role"
    role.parent.mkdir(mode=0o700)
    role.write_text("no role")
    role.chmod(0o600)
    with serving(configured(tmp_path, "good", "linked", "damaged")) as node:
        wait_served(node, "good")
        assert status(node)["damaged"]["trouble"]
        write(tmp_path / "volume" / "linked.db", 1)
        role.unlink()
        wait_served(node, "damaged", "good", "linked")


@pytest.mark.parametrize("keys", ["", "restore-if-db-not-exists: true, "])
def test_a_path_that_cannot_be_looked_at_stops_no_others(tmp_path: Path, keys: str) -> None:
    write(tmp_path / "good.db", 1)
    config = configured(tmp_path, "good")
    denied = tmp_path / ("x" * 300) / "denied.db"  # to root as well, as a folder without rights is to others
    with config.open("a") as file:
        file.write(f"- {{path: {denied}, {keys}replica: {{path: {tmp_path}/archive/denied}}}}\n")
    with serving(config) as node:
        wait_served(node, "good")
        assert status(node)["denied"]["trouble"]
        assert node.stop() == 0
    done = CliRunner().invoke(main, ["config", "check", str(config), "--json"])
    assert ["problem" in one for one in json.loads(done.stdout)["databases"]] == [False, True]


def test_one_database_by_itself_ends_the_process_in_one_line(tmp_path: Path) -> None:
    done = walcast("primary", "--config", configured(tmp_path, "missing"), "--listen", "127.0.0.1:0")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (1, 1)


def test_config_check_fails_when_a_database_cannot_be_served(tmp_path: Path) -> None:
    write(tmp_path / "good.db", 1)
    config = configured(tmp_path, "good", "missing")
    done = CliRunner().invoke(main, ["config", "check", str(config), "--json"])
    assert done.exit_code == 1
    good, missing = json.loads(done.stdout)["databases"]
    assert "problem" not in good
    assert "problem" in missing
    write(tmp_path / "missing.db", 1)
    assert CliRunner().invoke(main, ["config", "check", str(config)]).exit_code == 0


def test_a_member_whose_database_is_removed_stops_no_others_and_is_served_again(tmp_path: Path) -> None:
    for name in ("good", "lost"):
        write(tmp_path / f"{name}.db", 1)
        with primary(tmp_path / f"{name}.db"):
            pass
        write_standing(state_dir(tmp_path / f"{name}.db"), Standing(PRIMARY, 1, history=()))  # as after a failover
    for path in tmp_path.glob("lost.db*"):
        if path.is_file():
            path.unlink()
    with serving(configured(tmp_path, "good", "lost")) as node:
        wait_served(node, "good")
        assert status(node)["lost"]["trouble"]
        assert status(node)["good"]["role"] == "primary"
        write(tmp_path / "lost.db", 2)
        wait_served(node, "good", "lost")
        for path in tmp_path.glob("lost.db*"):
            if path.is_file():
                path.unlink()
        assert poll(lambda: status(node)["lost"]["trouble"], 10, 0.05)
        write(tmp_path / "lost.db", 3)
        assert poll(lambda: status(node)["lost"]["trouble"] is None, 15, 0.05)
        wait_served(node, "good", "lost")
        assert node.running
