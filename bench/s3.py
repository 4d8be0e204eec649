"""A real S3 server on loopback for a benchmark, and a proxy that counts requests."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from bench.harness import BenchError, Child, Run

KEY_ID = "walcast-bench"
SECRET = "walcast-bench-secret"
BUCKET = "archive"
_REQUEST = re.compile(rb"(?:GET|PUT|POST|HEAD|DELETE) \S+ HTTP/1\.1\r\n")


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket; `folder` holds its objects as files."""

    endpoint: str
    folder: Path
    process: Child

    def url(self, prefix: str, *, endpoint: str = "") -> str:
        """As walcast takes it."""
        query = {"endpoint": endpoint or self.endpoint, "region": "us-east-1", "path-style": "true"}
        return f"s3://{BUCKET}/{prefix}?{urlencode(query)}"

    def environment(self) -> dict[str, str]:
        """With the keys."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LITESTREAM_"))}
        return kept | {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}

    def client(self, connections: int = 10) -> Any:
        """boto3's."""
        import boto3
        from botocore.config import Config

        config = Config(
            max_pool_connections=connections,
            s3={"addressing_style": "path"},
            response_checksum_validation="when_required",
            request_checksum_calculation="when_required",
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            config=config,
        )


@contextmanager
def rclone_s3(run: Run, folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3` over `folder`."""
    (folder / BUCKET).mkdir(parents=True)
    program = Path(sys.executable).with_name("rclone")
    command = [str(program), "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY_ID},{SECRET}"]
    command += ["--config", os.devnull, "--vfs-cache-mode", "off", str(folder)]
    child = run.start("rclone", command)
    give_up_s = time.monotonic() + 15
    while (found := re.search(r"http://127\.0\.0\.1:\d+", child.log.read_text())) is None:
        if not child.running or time.monotonic() > give_up_s:
            raise BenchError(f"rclone did not start: {child.log.read_text()}")
        time.sleep(0.02)
    yield S3Server(found[0], folder, child)
    child.stop()


@dataclass
class Proxy:
    """What came through."""

    endpoint: str
    requests: int = 0
    data: int = 0  # bytes, both ways
    kinds: dict[str, int] = field(default_factory=dict)
    upstream: str = ""

    def point_to(self, address: str) -> None:
        """HOST:PORT, for connections to come."""
        self.upstream = f"http://{address}"


@contextmanager
def counted(endpoint: str) -> Iterator[Proxy]:
    """A proxy that passes bytes on as they are, and counts them and request lines."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}", upstream=endpoint)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    upstream = urlsplit(proxy.upstream)
                    server = socket.create_connection((upstream.hostname or "", upstream.port or 80))
                    threading.Thread(target=_pass, args=(client, server, proxy), daemon=True).start()
                    threading.Thread(target=_pass, args=(server, client, proxy, False), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield proxy


def _pass(source: socket.socket, target: socket.socket, proxy: Proxy, counting: bool = True) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            proxy.data += len(data)
            if counting:
                for line in _REQUEST.findall(data):
                    proxy.requests += 1
                    kind = line.split()[0].decode()
                    proxy.kinds[kind] = proxy.kinds.get(kind, 0) + 1
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
