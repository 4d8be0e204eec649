"""Nodes as processes with certificates and tokens: they find each other, and take new files without a restart."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.certs import OPERATOR, Authority, token_file, token_of
from support.nodes import Node, follower, poll, primary, walcast

import walcast as library


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as one:
        one.execute("PRAGMA journal_mode=WAL")
        one.execute("CREATE TABLE note(text)")
    return path


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def facts_of(node: Node, *flags: str | Path) -> dict[str, Any]:
    done = walcast("status", node.address, "--json", *flags)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def outcomes(node: Node) -> list[str]:
    """Of what it read again, as the audit trail has it; files that change one after the other may be seen apart."""
    found = [line["outcome"] for line in node.events("credentials")]
    return [one for one, before in zip(found, [None, *found], strict=False) if one != before]


def streaming(node: Node, *flags: str | Path) -> list[str]:
    [database] = facts_of(node, *flags)["databases"]
    return [one["id"] for one in database["followers"] if one["state"] == "streaming"]


def test_nodes_are_known_by_their_certificates_and_an_expired_one_is_replaced_without_a_restart(
    db: Path, ca: Authority, tmp_path: Path
) -> None:
    operator = ca.flags("anna", OPERATOR)
    edge = ca.flags("edge")
    ca.ending("edge", timedelta(seconds=-60))
    with primary(db, *ca.flags("origin")) as origin:
        assert facts_of(origin, *operator)["tls"]["identity"] == "node/origin"
        replica = tmp_path / "edge" / "app.db"
        with follower(replica, origin.address, *edge, wait=False) as node:
            assert node.wait_event("a certificate has expired: replace the file, it is read again by itself")
            node.wait_event("trying again")
            done = walcast("status", origin.address, *edge)
            assert str(ca.folder / "edge.pem") in done.stderr  # gRPC says no more than that the connection was closed
            assert streaming(origin, *operator) == []
            assert not replica.exists()

            ca.files("edge")
            node.wait_event("credentials reloaded")
            assert poll(lambda: streaming(origin, *operator) == ["edge"], every_s=0.1)
            local = json.loads(walcast("status", replica, "--json").stdout)
            assert local["tls"]["identity"] == "node/edge"
            assert node.starts == 1

        cert, key = ca.files("anna", OPERATOR)
        with library.Primary(origin.address, "app", tls_ca=ca.ca, tls_cert=cert, tls_key=key) as app:
            assert app.barrier()


def test_sighup_reads_files_and_the_log_level_again_and_what_is_wrong_changes_nothing(
    db: Path, ca: Authority, tmp_path: Path
) -> None:
    config = tmp_path / "walcast.yml"
    config.write_text("log-level: warning\n")
    anna = ca.flags("anna", OPERATOR)
    with primary(db, "--config", config, *ca.flags("origin")) as origin:
        before = facts_of(origin, *anna)["tls"]
        assert not origin.events("listening")
        assert not [one for one in origin.events() if "private key" in one["event"]]

        (cert, key), replaced = ca.ending("origin", timedelta(days=20)), "a certificate ends soon"
        key.chmod(0o644)
        config.write_text("log-level: info\n")
        origin.signal(signal.SIGHUP)
        said = origin.wait_event("SIGHUP: read again")
        assert (said["log_level"], str(cert) in said["files"]) == ("info", True)
        after = facts_of(origin, *anna)["tls"]
        assert after["not_after"] < before["not_after"]
        assert poll(lambda: [one for one in origin.events() if one["event"].startswith(replaced)])[0]["days"] == "19"

        assert poll(lambda: [one for one in origin.events() if "private key" in one["event"]])[0]["file"] == str(key)

        config.write_text("log-level: loud\n")
        cert.write_text("nothing\n")
        origin.signal(signal.SIGHUP)
        said = origin.wait_event("SIGHUP: not everything could be read again; what was before stays")
        assert len(said["errors"]) == 2
        facts = facts_of(origin, *anna)
        assert facts["tls"] == after
        assert str(cert) in facts["credentials_error"]
        assert outcomes(origin) == ["refused"]  # what was read before was not logged at the level of then

        ca.files("origin")
        assert poll(lambda: "credentials_error" not in facts_of(origin, *anna), every_s=0.1)
        assert outcomes(origin) == ["refused", "reloaded"]
        assert origin.stop() == 0


def test_nodes_and_apps_show_tokens(db: Path, ca: Authority, tmp_path: Path) -> None:
    token, line = token_of("edge")
    mine = token_file(tmp_path / "mine", token)
    accepted = token_file(tmp_path / "accepted", line, token_of("origin")[0])
    cert, key = ca.files("origin")
    served = ("--tls-cert", cert, "--tls-key", key, "--token-file", accepted)
    shown = ("--tls-ca", ca.ca, "--token-file", mine)
    replica = tmp_path / "edge" / "app.db"
    with primary(db, *served) as origin, follower(replica, origin.address, *shown, "--id", "edge"):
        assert streaming(origin, *shown) == ["edge"]
        for proof in ({"token": token}, {"token_file": mine}):
            with library.Primary(origin.address, "app", tls_ca=ca.ca, **proof) as app:  # type: ignore[arg-type]
                assert app.barrier()
        done = walcast("verify", replica, "--primary", origin.address, *shown)
        assert done.returncode == 0, done.stderr


def test_what_cannot_be_meant_is_refused_before_anything_is_made(db: Path, ca: Authority, tmp_path: Path) -> None:
    flags = ca.flags("origin")
    for wrong in ("--insecure",), ("--id", "edge"):
        done = walcast("primary", db, "--listen", "127.0.0.1:0", *flags, *wrong)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert done.stderr.count("error: ") == 1
        assert not (tmp_path / "app.db-walcast").exists()
