"""Real S3 servers on a loopback port, for tests: `rclone serve s3` over a folder, and moto.

with rclone_s3(tmp_path) as server, open_store(server.spec("db")) as store: ...
with counted_s3(tmp_path) as server:        # rclone behind the proxy of support/s3_proxy.py, see there
    run(primary, server.url("db"), env=server.environment())
    assert server.traffic.requests["LIST"] == 1
    with server.traffic.outage("503"): ...
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from support.s3_proxy import Traffic, proxied

from walcast.store import S3Spec

KEY_ID = "walcast-test"
SECRET = "walcast-test-secret"
BUCKET = "archive"


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket; `folder` holds its objects as files where it is rclone."""

    endpoint: str
    folder: Path | None = None

    def spec(self, prefix: str = "db", *, secret: str = SECRET, bucket: str = BUCKET) -> S3Spec:
        return S3Spec(
            bucket=bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            path_style=True,
            access_key_id=KEY_ID,
            secret_access_key=secret,
        )

    def environment(self) -> dict[str, str]:
        """For other programs, such as Litestream: the keys in their variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LITESTREAM_"))}
        return kept | {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}

    def url(self, prefix: str = "db") -> str:
        return self.spec(prefix).url


@contextmanager
def rclone_s3(folder: Path, *, tls: Path | None = None) -> Iterator[S3Server]:
    """`rclone serve s3` over `folder`, at a port of the system's choice; with TLS, the file has key and certificate."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name("rclone")
    command = [str(program), "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY_ID},{SECRET}"]
    command += ["--config", os.devnull, "--vfs-cache-mode", "off", str(folder)]
    if tls is not None:
        command += ["--cert", str(tls), "--key", str(tls)]
    with _process(command, r"https?://127\.0\.0\.1:\d+") as endpoint:
        yield S3Server(endpoint, folder)


@dataclass(frozen=True)
class CountedS3(S3Server):
    """A server behind a proxy; `traffic` counts its requests and can make it fail."""

    traffic: Traffic = field(default_factory=Traffic)


@contextmanager
def counted(server: S3Server) -> Iterator[CountedS3]:
    """`server`, which keeps running by itself, behind a proxy with an endpoint of its own."""
    with proxied(server.endpoint) as (endpoint, traffic):
        yield CountedS3(endpoint, server.folder, traffic)


@contextmanager
def counted_s3(folder: Path) -> Iterator[CountedS3]:
    """`rclone serve s3` over `folder`, behind a proxy."""
    with rclone_s3(folder) as server, counted(server) as front:
        yield front


@contextmanager
def _process(command: list[str], announces: str, seconds: float = 15.0) -> Iterator[str]:
    """A server that prints where it listens. It ends with the test, however the test ends."""
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said) as process:
        try:
            until = time.monotonic() + seconds
            while (match := re.search(announces, os.pread(said.fileno(), 1 << 16, 0).decode(errors="replace"))) is None:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command[0]} did not start: {os.pread(said.fileno(), 1 << 16, 0)!r}")
                time.sleep(0.01)
            yield match[0]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def moto_s3() -> Iterator[S3Server]:
    """moto in this process, on its own thread. It takes any keys."""
    from moto.server import ThreadedMotoServer

    _put_one_at_a_time()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        found = S3Server(f"http://{host}:{port}")
        _create_bucket(found)
        yield found
    finally:
        server.stop()


@cache
def _put_one_at_a_time() -> None:
    """moto asks for a precondition first and writes afterwards; to S3 the two are one step."""
    from moto.s3.responses import S3Response

    one, put = threading.Lock(), S3Response.put_object

    def put_alone(response: S3Response) -> Any:
        with one:
            return put(response)

    S3Response.put_object = put_alone  # type: ignore[method-assign]


def _create_bucket(server: S3Server) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
    )
    try:
        client.create_bucket(Bucket=BUCKET)
    finally:
        client.close()
