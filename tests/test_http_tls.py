"""`--http` beyond loopback: HTTPS, or plain text that was asked for."""

from __future__ import annotations

import sqlite3
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http_asked import (
    LOCAL,
    SOON_S,
    body_of,
    connect,
    get,
    hung_up,
    serving,
)
from support.nodes import poll, walcast

from walcast.access.credentials import Credentials
from walcast.errors import ConfigError
from walcast.wire import Address, Tls
from walcast_node.http import server as http_server
from walcast_node.http.near import is_loopback
from walcast_node.http.routes import near
from walcast_node.http.server import HttpServer, bind
from walcast_node.http.tls import certificate_for
from walcast_node.process.reload import refresh


def test_beyond_loopback_there_is_no_plain_http_unless_it_is_asked_for(tmp_path: Path) -> None:
    everywhere = Address("0.0.0.0", 7421)
    with pytest.raises(ConfigError):
        certificate_for(Credentials(Tls()), everywhere, loopback=False)
    with pytest.raises(ConfigError):
        certificate_for(Credentials(Tls(cert=tmp_path / "c")), everywhere, loopback=False)
    with pytest.raises(ConfigError):
        certificate_for(Credentials(Tls(cert=tmp_path / "c", key=tmp_path / "k")), everywhere, loopback=False)
    assert certificate_for(Credentials(Tls(insecure=True)), everywhere, loopback=False) is None
    for address in (Address("0.0.0.0", 0), Address("[::]", 0)):
        with pytest.raises(ConfigError):
            HttpServer(address, {}, near, connections=1)


def test_a_primary_with_plain_http_for_everybody_does_not_start(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    sqlite3.connect(database).execute("CREATE TABLE t (x)").connection.close()
    before = sorted(tmp_path.iterdir())
    done = walcast("primary", database, "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0")
    assert done.returncode == 1
    assert "--tls DIR" in done.stderr
    assert sorted(tmp_path.iterdir()) == before  # refused before anything was changed


def test_a_name_is_bound_to_an_address_of_its_own() -> None:
    with bind(Address("localhost", 0)) as bound:
        assert is_loopback(bound.getsockname()[0])
    with pytest.raises(ConfigError):
        bind(Address("192.0.2.1", 0))  # nobody's, by RFC 5737


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two for 127.0.0.1, each its own CA, by the openssl command."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("one", "two"):
        files = ("-keyout", f"{name}.key.pem", "-out", f"{name}.cert.pem")
        about = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
        subprocess.run(["openssl", "req", "-x509", *curve, *files, *about], check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture
def credentials(certificates: Path, tmp_path: Path) -> Credentials:
    use(certificates, "one", tmp_path)
    return Credentials(Tls(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem"))


@pytest.fixture
def https(
    credentials: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[HttpServer, Path]]:
    monkeypatch.setattr(http_server, "is_loopback", lambda address: False)
    monkeypatch.setattr(http_server, "TOTAL_S", 1.5)
    with serving(credentials=credentials) as server:
        yield server, tmp_path


def use(certificates: Path, name: str, folder: Path) -> None:
    for kind in ("cert", "key"):
        new = folder / f"{kind}.new"
        new.write_bytes((certificates / f"{name}.{kind}.pem").read_bytes())
        new.replace(folder / f"{kind}.pem")


def over_tls(server: HttpServer, trusted: Path, data: bytes) -> bytes:
    context = ssl.create_default_context(cafile=str(trusted))
    with connect(server) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as one:
        one.sendall(data)
        got = b""
        while part := one.recv(1 << 16):
            got += part
        return got


def test_beyond_loopback_https_is_served_and_no_plain_http(https: tuple[HttpServer, Path], certificates: Path) -> None:
    server, _ = https
    answer = over_tls(server, certificates / "one.cert.pem", b"GET /status HTTP/1.1" + LOCAL)
    assert body_of(answer) == {"role": "primary"}
    assert b"HTTP/1.1" not in get(server, "/healthz")


def test_the_certificate_that_the_node_has_read_last_is_shown_and_a_broken_one_is_not(
    https: tuple[HttpServer, Path], credentials: Credentials, certificates: Path
) -> None:
    server, folder = https
    ask = b"HEAD /healthz HTTP/1.1" + LOCAL
    (folder / "cert.pem").write_bytes((certificates / "two.cert.pem").read_bytes())  # its key is not there yet
    assert refresh(credentials).error is not None
    assert over_tls(server, certificates / "one.cert.pem", ask)
    use(certificates, "two", folder)
    assert over_tls(server, certificates / "one.cert.pem", ask)  # the server does not look by itself
    assert refresh(credentials).changed
    assert over_tls(server, certificates / "two.cert.pem", ask)
    (folder / "key.pem").unlink()
    assert refresh(credentials).error is not None
    assert over_tls(server, certificates / "two.cert.pem", ask)


def test_a_tls_handshake_has_the_same_deadline(https: tuple[HttpServer, Path], certificates: Path) -> None:
    server, _ = https
    with connect(server) as silent, connect(server) as slow:
        slow.sendall(b"\x16\x03\x01")
        began_s = time.monotonic()
        assert poll(lambda: hung_up(silent) and hung_up(slow), SOON_S)
        assert time.monotonic() - began_s < 4.0
    assert over_tls(server, certificates / "one.cert.pem", b"HEAD /healthz HTTP/1.1" + LOCAL)
