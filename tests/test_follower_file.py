"""`walcast follower --config`: what the file says holds where no flag says something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from walcast.store.url import DirectorySpec
from walcast.wire import Address
from walcast_node.cli import main
from walcast_node.commands import follower
from walcast_node.config.settings import HostSettings


def settings(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> HostSettings:
    """What the command would have a node go by."""
    found: list[HostSettings] = []

    def serve(given: HostSettings, ready: object) -> int:
        found.append(given)
        return 0

    monkeypatch.setattr(follower, "serve", serve)
    done = CliRunner().invoke(main, ["follower", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return found[0]


def test_a_follower_goes_by_its_file_where_no_flag_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, ca = tmp_path / "walcast.yml", tmp_path / "ca.pem"
    ca.write_text("a certificate")
    file.write_text(
        f"listen: 127.0.0.1:7\nhttp: 127.0.0.1:8\nlog-max-bytes: 1MiB\nlog-max-age: 5m\ntls: {{ca: {ca}}}\n"
        f"dbs: [{{path: {tmp_path}/app.db, name: shop, replica: {{path: {tmp_path}/archive}}}}]\n"
    )
    monkeypatch.setattr("walcast.wire.Tls.channel", lambda *_: None)
    where = tmp_path / "app.db", "--primary", "127.0.0.1:1", "--config", file
    told = settings(monkeypatch, *where)
    assert (told.listen, told.http) == (Address("127.0.0.1", 7), Address("127.0.0.1", 8))
    assert (told.log_bytes, told.log_age_s, told.tls.ca) == (1 << 20, 300.0, ca)
    [database] = [member.database for member in told.members]
    assert (database.name, database.archive) == ("shop", DirectorySpec(tmp_path / "archive"))
    given = settings(
        monkeypatch, *where, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:9", "--name", "app", "--archive", "/other"
    )
    assert (given.listen.port, given.http) == (0, Address("127.0.0.1", 9))
    [database] = [member.database for member in given.members]
    assert (database.name, database.archive) == ("app", "/other")
