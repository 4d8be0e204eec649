"""`--tls DIR`: a folder that `walcast certs` made is all that a node, a command or an app needs to be told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.nodes import primary

import walcast
from walcast.access.folder import files_of
from walcast.errors import ConfigError
from walcast.wire import Tls
from walcast_node.commands.certs import certs_command
from walcast_node.commands.options import TLS_FLAGS, tls_of
from walcast_node.config.configuration import load_config


def certs(*arguments: str | Path) -> None:
    done = CliRunner().invoke(certs_command, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    folder = tmp_path / "pki"
    certs("init", folder)
    certs("node", folder, "origin", "--host", "127.0.0.1")
    return folder


def flags(**given: object) -> Tls:
    unsaid = dict.fromkeys(TLS_FLAGS) | {"tls_client_auth": "required", "insecure": False}
    return tls_of(**(unsaid | given))  # type: ignore[arg-type]  # as click gives them


def test_flag_configuration_and_three_flags_mean_the_same(pki: Path) -> None:
    folder = pki / "origin"
    config = pki / "walcast.yml"
    config.write_text(f"tls: {folder}\n")
    three = flags(tls_ca=folder / "ca.pem", tls_cert=folder / "origin.pem", tls_key=folder / "origin.key")
    assert flags(tls=folder) == three == load_config(config).tls


def test_a_folder_and_a_file_of_another_are_not_mixed(pki: Path) -> None:
    with pytest.raises(ConfigError):
        flags(tls=pki / "origin", tls_ca=pki / "ca.pem")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        without("origin.key"),
        without("origin.pem"),
        without("ca.pem"),
        lambda folder: (folder / "edge.key").touch(),
        lambda folder: (folder / "ca.key").touch(),
    ],
    ids=["no key", "no certificate", "no CA", "two keys", "the key of the CA"],
)
def test_a_folder_that_is_not_one_nodes_is_refused(pki: Path, damage: Callable[[Path], None]) -> None:
    damage(pki / "origin")
    with pytest.raises(ConfigError):
        files_of(pki / "origin")


def test_what_is_no_folder_is_refused(pki: Path) -> None:
    for path in (pki, pki / "edge", pki / "ca.pem"):
        with pytest.raises(ConfigError):
            files_of(path)


def test_a_node_and_an_app_need_no_more_than_their_folders(pki: Path, tmp_path: Path) -> None:
    certs("client", pki, "reports")
    db = tmp_path / "app.db"
    with closing(sqlite3.connect(db)) as one:
        one.execute("CREATE TABLE note(text)")
    with (
        primary(db, "--tls", pki / "origin") as origin,
        walcast.Primary(origin.address, "app", tls=pki / "reports") as app,
    ):
        assert app.barrier()
