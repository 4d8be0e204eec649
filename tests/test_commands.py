"""The commands as people type them: answers, exit codes, one line for whatever cannot work, with nothing changed."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.e2e_state import create, observe_at
from support.nodes import ENVIRONMENT, Node, follower, poll, primary, wait_level, walcast
from support.writers import sql

from walcast import wire
from walcast.errors import ConfigError
from walcast.filesystem import check_database_file, check_local, filesystem_type
from walcast.position import format_txid
from walcast_node.cli import main


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below, with what is in it."""
    paths = sorted(directory.rglob("*"))
    return {str(p.relative_to(directory)): (p.stat().st_mode, p.read_bytes() if p.is_file() else b"") for p in paths}


def one_error_line(done: Any, *words: str) -> str:
    """Exit code 1, one line, no traceback."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    return str(lines[0])


def refused(directory: Path, *arguments: str | Path, words: tuple[str, ...], quiet: bool = True, **kwargs: Any) -> None:
    """The command fails in one line, and the folder is as it was."""
    before = tree(directory)
    done = walcast(*arguments, **kwargs)
    one_error_line(done, *words)
    assert tree(directory) == before
    if quiet:
        others = [line for line in done.stderr.splitlines() if " level=info msg=" not in line]
        assert len(others) == 1, done.stderr


# What cannot work


def test_a_taken_port_is_refused_and_nothing_is_changed(db: Path, tmp_path: Path, taken: str) -> None:
    refused(tmp_path, "primary", db, "--listen", taken, words=(taken, "taken"))


def make_text(path: Path) -> Path:
    path.write_text("no database at all, but longer than the magic bytes of one")
    return path


def make_broken(path: Path) -> Path:
    path.write_bytes(b"SQLite format 3\0" + b"garbage " * 600)
    return path


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path, "no such file"),
        (make_text, "not a SQLite database"),
        (make_broken, "app.db"),
        (lambda path: path.mkdir() or path, "is a folder"),
        (lambda path: path / "nowhere.db", "no such file"),
    ],
    ids=["missing", "text", "broken", "folder", "no folder"],
)
def test_what_is_no_database_is_refused(tmp_path: Path, make: Callable[[Path], Path], word: str) -> None:
    path = make(tmp_path / "app.db")
    refused(tmp_path, "primary", path, "--listen", "127.0.0.1:0", words=(str(path), word))


@pytest.mark.slow  # waits five seconds for the lock
def test_a_locked_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    create(path, journal_mode="DELETE")
    with sql(path) as one:
        one("BEGIN EXCLUSIVE")
        done = walcast("primary", path, "--listen", "127.0.0.1:0")
        one_error_line(done, str(path), "locked")


@pytest.mark.parametrize("mode", [0o400, 0o000])
def test_no_permission_is_one_line(db: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may do everything, so the system's answer is made up where the test runs as root."""
    db.chmod(mode)
    if os.access(db, os.W_OK):
        real = Path.open

        def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self == db:
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConfigError, match=rf"{db}: Permission denied"):
        check_database_file(db)


def test_a_state_folder_that_cannot_be_made_is_one_line(db: Path) -> None:
    Path(f"{db}-walcast").write_text("in the way")
    one_error_line(walcast("primary", db, "--listen", "127.0.0.1:0"), f"{db}-walcast")


def test_a_network_file_system_is_refused(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"1 1 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / {db.parent} rw - nfs4 server:/export rw\n"
    assert filesystem_type(db, mounts) == "nfs4"
    monkeypatch.setattr("walcast.filesystem.filesystem_type", lambda path: "nfs4")
    with pytest.raises(ConfigError, match="network file system"):
        check_local(db)


@pytest.mark.parametrize("name", [b"\xff", b"\r1 2", "\u2028x".encode(), b"a\\134b", b"a\\040-\\040nfs4"])
def test_no_name_of_another_users_mount_point_keeps_a_node_from_starting(db: Path, name: bytes) -> None:
    """With FUSE every user of a machine chooses some."""
    theirs = b"3 1 0:3 / /home/them/" + name + b" rw - fuse.sshfs x rw\n"
    mounts = f"1 1 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / {db.parent} rw - xfs /dev/y rw\n"
    assert filesystem_type(db, mounts + os.fsdecode(theirs)) == "xfs"
    (db.parent / "ä b").mkdir()
    mounts += f"4 1 0:4 / {db.parent}/ä\\040b rw - nfs4 x rw\n"
    assert filesystem_type(db.parent / "ä b" / "x", mounts) == "nfs4"


@pytest.mark.parametrize("url", ["ftp://host/path", "s3://", "s3:///prefix", "http://x/y"])
def test_a_wrong_archive_url_is_refused(db: Path, tmp_path: Path, url: str) -> None:
    refused(tmp_path, "primary", db, url, "--listen", "127.0.0.1:0", words=())


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:port"])
def test_a_wrong_address_is_refused(db: Path, tmp_path: Path, listen: str) -> None:
    refused(tmp_path, "primary", db, "--listen", listen, words=(listen,))


def test_listening_beyond_this_machine_needs_tls_or_insecure(db: Path, tmp_path: Path) -> None:
    refused(tmp_path, "primary", db, "--listen", "0.0.0.0:0", words=("--tls DIR", "--insecure"))
    refused(tmp_path, "follower", tmp_path / "r.db", "--primary", "192.0.2.1:7420", words=("--tls DIR", "--insecure"))
    with primary(db, "--insecure", listen="0.0.0.0:0") as node:
        assert node.running


def test_missing_tls_files_are_refused(db: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no PEM")
    listen = ("--listen", "127.0.0.1:0")
    cases = [
        (("--tls-cert", tmp_path / "none.pem", "--tls-key", tmp_path / "none.key"), "none"),
        (("--tls-cert", tmp_path / "text"), "--tls-key"),
        (("--tls-cert", tmp_path / "text", "--tls-key", tmp_path / "text"), "not a PEM file"),
    ]
    for flags, word in cases:
        refused(tmp_path, "primary", db, *listen, *flags, words=(word,))


def test_two_processes_on_one_database_are_refused(db: Path) -> None:
    with primary(db) as node:
        one_error_line(walcast("primary", db, "--listen", "127.0.0.1:0"), "another walcast process")
        one_error_line(walcast("follower", db, "--primary", node.address), str(db))
        assert node.running


def test_a_follower_does_not_overwrite_a_database_that_is_no_replica(db: Path, tmp_path: Path) -> None:
    other = tmp_path / "replica" / "app.db"
    other.parent.mkdir()
    create(other, seed=5)
    before = tree(other.parent)
    with primary(db) as node:
        one_error_line(walcast("follower", other, "--primary", node.address), "--replace")
        assert tree(other.parent) == before
        with follower(other, node.address, "--replace"):
            wait_level(node.address, other)
            assert observe_at(other) == observe_at(db)


def test_an_unknown_database_name_is_one_line_and_leaves_nothing(db: Path, tmp_path: Path) -> None:
    replica = tmp_path / "replica" / "app.db"
    replica.parent.mkdir()
    with primary(db) as node:
        done = walcast("follower", replica, "--primary", node.address, "--name", "other")
        one_error_line(done, "no database 'other'", "app")
    assert not list(replica.parent.iterdir())


def test_a_primary_of_another_protocol_version_is_one_line(db: Path, tmp_path: Path) -> None:
    replica = tmp_path / "replica" / "app.db"
    replica.parent.mkdir()
    newer = "import walcast.wire as w; w.PROTOCOL_VERSION += 1; from walcast_node.cli import main; main()"
    with primary(db) as node:
        done = subprocess.run(
            [sys.executable, "-c", newer, "follower", str(replica), "--primary", node.address],
            capture_output=True,
            text=True,
            timeout=60,
            env=ENVIRONMENT,
            check=False,
        )
        one_error_line(done, node.address, "protocol")
    assert not replica.exists()


def test_a_server_that_is_no_walcast_is_told(tmp_path: Path) -> None:
    from concurrent import futures

    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        one_error_line(walcast("status", f"127.0.0.1:{port}"), "not a walcast primary")
        done = walcast("follower", tmp_path / "r.db", "--primary", f"127.0.0.1:{port}")
        one_error_line(done, "not a walcast primary")
    finally:
        server.stop(None)


def test_what_cannot_be_asked_is_one_line(tmp_path: Path, db: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    one_error_line(walcast("status", free), free)
    one_error_line(walcast("status", tmp_path / "none.db"), "no such file")
    one_error_line(walcast("status", db), "no walcast process has run")
    one_error_line(walcast("verify", tmp_path / "none.db", "--primary", free), "no such file")
    one_error_line(walcast("verify", db, "--primary", free))
    one_error_line(walcast("wait", db, "1", "--timeout", "0.1"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["primary"],
        ["primary", "app.db", "--nonsense"],
        ["follower", "r.db"],
        ["status", "--interval", "never"],
        ["wait", "r.db"],
        ["primary", "app.db", "--log-max-bytes", "5"],
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    done = walcast(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# What works


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_primary_and_follower_with_exit_code_0(db: Path, tmp_path: Path, number: signal.Signals) -> None:
    with primary(db, fresh=True) as node, follower(tmp_path / "r" / "app.db", node.address, fresh=True) as copy:
        for one in (copy, node):
            one.signal(number)
            assert one.wait(10.0) == 0
            assert "Traceback" not in one.err.read_text()


def test_a_follower_without_its_primary_stops_at_a_signal_too(db: Path, tmp_path: Path) -> None:
    with primary(db) as node, follower(tmp_path / "replica" / "app.db", node.address) as copy:
        node.kill()
        copy.wait_event("trying again")
        assert copy.stop() == 0
        tried = len(copy.events("trying again"))
        copy.start()  # and starts without it
        assert poll(lambda: len(copy.events("trying again")) > tried)
        assert copy.stop() == 0
        node.start().ready()
        copy.start().ready()


def test_every_flag_also_reads_from_the_environment(db: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    environment = {"WALCAST_LISTEN": free, "WALCAST_LOG_FORMAT": "json", "WALCAST_JSON": "1", "WALCAST_NAME": "shop"}
    node = Node(["primary", str(db)], db.parent, "primary", environment)
    try:
        facts = node.start().ready()
        assert facts | {"role": "primary", "listen": free, "databases": ["shop"]} == facts
    finally:
        node.end()


def test_status_as_json_has_the_fields_that_scripts_rely_on(db: Path, tmp_path: Path) -> None:
    replica = tmp_path / "replica" / "app.db"
    archive = tmp_path / "archive"
    with primary(db, archive) as node, follower(replica, node.address, "--id", "edge-1"):
        with sql(db) as one:
            one("UPDATE accounts SET balance = balance + 1")
        position = wait_level(node.address, replica)
        assert poll(lambda: json.loads(walcast("status", node.address, "--json").stdout)["databases"][0]["archive"])
        facts = json.loads(walcast("status", node.address, "--json").stdout)
        assert facts["role"] == "primary"
        assert facts["term"] == 1
        [database] = facts["databases"]
        assert database["name"] == "app"
        assert database["path"] == str(db)
        assert database["position"] == str(position)
        assert database["txid"] == position.txid
        assert database["page_size"] == 4096
        assert database["pages"] == sqlite3.connect(db).execute("PRAGMA page_count").fetchone()[0]
        assert isinstance(database["wal_bytes"], int)
        assert set(database["archive"]) >= {"url", "txid", "error"}
        assert database["archive"]["error"] is None
        [edge] = database["followers"]
        assert edge["id"] == "edge-1"
        assert edge["received_txid"] == edge["applied_txid"] == position.txid
        assert edge["lag_txids"] == 0
        assert edge["lag_ms"] >= 0
        assert edge["state"] == "streaming"

        mine = json.loads(walcast("status", replica, "--json").stdout)
        assert mine["role"] == "follower"
        assert mine["state"] == "streaming"
        assert mine["position"] == str(position)
        assert mine["txid"] == position.txid
        assert mine["lag_txids"] == 0
        assert mine["lag_ms"] >= 0
        assert mine["primary"] == node.address

        for target in (node.address, str(replica)):
            table = walcast("status", target)
            assert table.returncode == 0
            assert "streaming" in table.stdout

        node.kill()
        assert poll(lambda: json.loads(walcast("status", replica, "--json").stdout)["state"] == "disconnected")


def test_wait_returns_when_a_replica_has_a_transaction_and_fails_when_not(db: Path, tmp_path: Path) -> None:
    replica = tmp_path / "replica" / "app.db"
    with primary(db) as node, follower(replica, node.address):
        with sql(db) as one:
            one("UPDATE accounts SET balance = balance + 1")
        position = wait_level(node.address, replica)
        assert walcast("wait", replica, format_txid(position.txid)).returncode == 0
        assert walcast("wait", replica, str(position)).returncode == 0
        one_error_line(walcast("wait", replica, format_txid(position.txid + 5), "--timeout", "0.2"))


def test_every_command_shows_help() -> None:
    listed = walcast("--help").stdout
    for name in ("primary", "follower", "status", "wait", "verify"):
        assert name in listed
        done = CliRunner().invoke(main, [name, "--help"])
        assert done.exit_code == 0
        assert "Usage:" in done.output
        assert "--log-level" in done.output


# TLS


def certificates(directory: Path) -> tuple[Path, Path, Path]:
    """A CA, and a certificate and key for 127.0.0.1, by the openssl command."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=directory)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA")
    openssl("req", *curve, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node")
    (directory / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        *("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "node.pem", "-days", "2", "-extfile", "ext"),
    )
    return directory / "ca.pem", directory / "node.pem", directory / "node.key"


def test_a_follower_with_a_certificate_follows_over_tls_and_one_without_does_not(db: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    ca, cert, key = certificates(keys)
    tls = ("--tls-ca", ca, "--tls-cert", cert, "--tls-key", key)
    replica = tmp_path / "replica" / "app.db"
    with primary(db, *tls) as node, follower(replica, node.address, *tls):
        with sql(db) as one:
            one("UPDATE accounts SET balance = balance + 1")
        assert poll(lambda: observe_at(replica) == observe_at(db))
        facts = json.loads(walcast("status", node.address, "--json", *tls).stdout)
        assert facts["databases"][0]["followers"]
        assert walcast("verify", replica, "--primary", node.address, *tls).returncode == 0
        one_error_line(walcast("status", node.address))  # plain text
        one_error_line(walcast("status", node.address, "--tls-ca", ca))  # shows no certificate
        with follower(tmp_path / "other" / "app.db", node.address, wait=False) as stranger:
            stranger.wait_event("trying again")
            assert not (tmp_path / "other" / "app.db").exists()


def test_the_addresses_of_this_machine() -> None:
    assert wire.Address.parse("[::1]:1").is_loopback
    assert wire.Address.parse("localhost:1").is_loopback
    assert not wire.Address.parse("0.0.0.0:1").is_loopback
    assert not wire.Address.parse("example.com:1").is_loopback
