"""`walcast certs`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.verification import ClientVerifier, PolicyBuilder, ServerVerifier, Store, VerificationError

from walcast.access.certificates import hosts_of
from walcast.access.names import NAME_CHARACTERS
from walcast.access.tokens import read_tokens
from walcast_node.cli import main


def certs(*arguments: str | Path, code: int = 0) -> Any:
    done = CliRunner().invoke(main, ["certs", *map(str, arguments)])
    assert done.exit_code == code, done.output
    if code:
        assert done.output.startswith("error: ")
        assert done.output.count("\n") == 1
    return json.loads(done.output) if "--json" in arguments else done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certs("init", tmp_path / "certs")
    return tmp_path / "certs"


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def policy(folder: Path) -> PolicyBuilder:
    return PolicyBuilder().store(Store([read(folder / "ca.pem")]))


def server(folder: Path, host: str) -> ServerVerifier:
    return policy(folder).build_server_verifier(x509.DNSName(host))


def client(folder: Path) -> ClientVerifier:
    return policy(folder).build_client_verifier()


def test_keys_are_for_their_owner_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        certs("node", folder, "origin", "--host", "a.example.com")
    finally:
        os.umask(before)
    assert [mode(path) for path in (folder, folder / "origin")] == [0o700, 0o700]
    assert [mode(path) for path in (folder / "ca.key", folder / "origin" / "origin.key")] == [0o600, 0o600]


def test_a_nodes_certificate_serves_its_hosts_and_shows_who_connects(folder: Path) -> None:
    written = certs("node", folder, "origin", "--host", "a.example.com", "--host", "10.0.0.1", "--json")
    cert, _, ca = map(Path, written["files"])
    assert written["identity"] == "node/origin"
    assert ca.read_bytes() == (folder / "ca.pem").read_bytes()
    assert hosts_of(read(cert)) == ("a.example.com", "10.0.0.1")
    server(folder, "a.example.com").verify(read(cert), [])
    client(folder).verify(read(cert), [])
    with pytest.raises(VerificationError):
        server(folder, "b.example.com").verify(read(cert), [])


@pytest.mark.parametrize(("flags", "identity"), [((), "client/anna"), (("--operate",), "operator/anna")])
def test_a_clients_certificate_serves_nothing(folder: Path, flags: tuple[str, ...], identity: str) -> None:
    certs("client", folder, "anna", *flags)
    cert = folder / "anna" / "anna.pem"
    client(folder).verify(read(cert), [])
    with pytest.raises(VerificationError):
        server(folder, "anna").verify(read(cert), [])
    shown = certs("show", cert, "--json")
    assert (shown["identity"], shown["hosts"], shown["valid"]) == (identity, [], True)


def test_without_a_ca_nothing_is_made(tmp_path: Path) -> None:
    certs("node", tmp_path, "origin", "--host", "127.0.0.1", code=1)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    certs("node", folder, "origin", "--host", "a")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    certs("init", folder, code=1)
    certs("node", folder, "origin", "--host", "b", code=1)
    certs("client", folder, "ca", "-o", folder, code=0)  # "ca" as a name is not the CA's file
    certs("init", tmp_path / "others")
    certs(
        "node", tmp_path / "others", "edge", "--host", "b", "-o", folder / "origin", code=1
    )  # another ca.pem is there
    assert {path: path.read_bytes() for path in before} == before
    assert not (folder / "origin" / "edge.key").exists()


def test_what_cannot_be_written_leaves_nothing_behind(folder: Path) -> None:
    (folder / "origin").mkdir()
    (folder / "origin" / "origin.pem").write_text("mine")
    certs("node", folder, "origin", "--host", "a", code=1)
    assert [path.name for path in (folder / "origin").iterdir()] == ["origin.pem"]


@pytest.mark.parametrize("name", ["../../up", "a/b", ".hidden", "ca", "Ünï 名", "a b"])
def test_a_name_stays_in_its_folder(folder: Path, name: str) -> None:
    cert, key, _ = map(Path, certs("node", folder, name, "--host", "a", "--json")["files"])
    assert cert.resolve().parent.parent == folder.resolve()
    assert {cert.name, key.name}.isdisjoint({"ca.pem", "ca.key"})
    assert certs("show", cert, "--json")["identity"] == f"node/{name}"


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\x1b[31m", "a\u202eb", "x" * (NAME_CHARACTERS + 1)])
def test_a_name_is_printable_and_bounded(folder: Path, name: str) -> None:
    certs("client", folder, name, code=1)


@pytest.mark.parametrize("host", ["", "a:7420", "http://a", "*.example.com", "a b", "-a", "a..b", "x" * 64])
def test_a_host_is_a_name_or_an_address(folder: Path, host: str) -> None:
    certs("node", folder, "origin", "--host", host, code=1)


def test_a_ca_that_others_can_use_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "ca.key").chmod(0o640)
    certs("client", folder, "a", code=1)
    (folder / "ca.key").chmod(0o600)
    (folder / "ca.key").rename(tmp_path / "key")
    (folder / "ca.key").symlink_to(tmp_path / "key")
    certs("client", folder, "a", code=1)
    (tmp_path / "open").mkdir(mode=0o755)
    certs("init", tmp_path / "open", code=1)


def test_nothing_outlives_its_ca(tmp_path: Path) -> None:
    certs("init", tmp_path / "short", "--days", "10")
    certs("client", tmp_path / "short", "a", code=1)
    certs("client", tmp_path / "short", "a", "--days", "9")


def test_a_new_token_is_accepted_by_its_line_and_by_no_other(tmp_path: Path) -> None:
    one, other = certs("token", "edge-1", "--json"), certs("token", "edge-1", "--json")
    assert one["token"] not in one["line"]
    file = tmp_path / "tokens"
    file.touch(mode=0o600)
    file.write_text(one["line"])
    accepted = read_tokens(file)
    assert accepted.identity(one["token"]) == "edge-1"
    assert accepted.identity(other["token"]) is None
    certs("token", "a b", code=1)


def test_what_is_printed_for_people_can_be_used_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.touch(mode=0o600)
    file.write_text(certs("token", "edge-1"))
    tokens = read_tokens(file)
    assert tokens.identity(tokens.own) == "edge-1"
