"""One URL is one place to walcast and to the real Litestream: host, bucket and key, as a proxy sees them that both use.

The proxy ends their TLS with a certificate of its own, so both are told not to verify it.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.s3 import BUCKET, KEY_ID, SECRET, rclone_s3
from support.s3_answers import Request, answering, certificate, friendly

from walcast.store import open_store

LITESTREAM = Path(sys.executable).with_name("litestream")

URLS = [
    "s3://bucket/db/app?endpoint=https://s3.example.com&region=eu-1",
    "s3://bucket/db?endpoint=s3.example.com:8443",
    "s3://bucket/db?endpoint=s3.example.com&forcePathStyle=false",
    "s3://my.bucket/db?endpoint=https://s3.example.com&forcePathStyle=false",
    "s3://bucket/db?region=eu-west-1",
    "s3://my.bucket/db?region=eu-west-1",
    "s3://bucket.s3.eu-west-1.amazonaws.com//db//app/",
    "s3://my.bucket.s3.eu-west-1.amazonaws.com/db",
    "s3://bucket.nyc3.digitaloceanspaces.com/db",
    "s3://bucket.s3.us-west-002.backblazeb2.com/a%20b",
    "s3://bucket.s3.filebase.com/db",
    "s3://bucket.s3.nl-ams.scw.cloud/db",
    "s3://bucket.minio.example.net:9000/db",
    "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/db",
]


def place(requests: list[Request], prefix: str) -> tuple[str, str, str]:
    """Scheme, host and path of a listing, and what is listed: the bucket and key of everything else."""
    lists = [request for request in requests if request.operation == "LIST"]
    url = urlsplit(lists[0].url)
    return url.scheme, url.netloc + url.path.rstrip("/"), lists[0].query["prefix"][0].partition(prefix)[0]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Keys and nothing else, for this process and those that it starts."""
    for name in os.environ:
        if name.startswith(("AWS_", "LITESTREAM_")) or name.lower() == "no_proxy":
            monkeypatch.delenv(name)
    for name, value in (("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)):
        monkeypatch.setenv(name, value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    return monkeypatch


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Request]]]:
    with answering(friendly, tls=certificate(tmp_path_factory.mktemp("proxy")), proxy=True) as running:
        yield running


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_one_place_to_both(
    url: str, proxy: tuple[str, list[Request]], tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    url += ("&" if "?" in url else "?") + "skipVerify=true"
    address, requests = proxy
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        environment.setenv(name, address)
    requests.clear()
    with open_store(url) as store:
        list(store.list(store.level_prefix(9)))
    ours = place(requests, "0009/")
    requests.clear()
    said = subprocess.run([LITESTREAM, "restore", "-o", tmp_path / "none.db", url], capture_output=True, timeout=20)
    assert requests, said.stderr
    assert place(requests, "0009/") == ours


def test_a_bucket_before_host_and_port_is_one_place_to_both(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    with rclone_s3(tmp_path) as server:
        url = f"s3://{BUCKET}.{server.endpoint.removeprefix('http://')}/app"
        database = tmp_path / "app.db"
        with sqlite3.connect(database) as connection:
            connection.executescript("pragma journal_mode=wal; create table t(x); insert into t values (1)")
        connection.close()
        subprocess.run([LITESTREAM, "replicate", "-once", database, url], check=True, capture_output=True, timeout=20)
        with open_store(url) as store:
            assert [found.key for found in store.list()]
