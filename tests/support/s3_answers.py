"""What an S3 client sends, seen without a network; and servers whose answers a test writes.

with captured(spec) as (store, requests):   # nothing is sent: every request gets a fit answer of ours
    store.put("a", b"x", timestamp_ms=0)
assert requests[0].url == "https://bucket.s3.eu-west-1.amazonaws.com/db/a"

def answer(request: Request) -> Answer: return s3_error(403, "AccessDenied")
with answering(answer) as (endpoint, requests): ...
with answering(answer, tls=certificate(tmp_path)) as (endpoint, requests): ...   # https
    with answering(answer, tls=…, proxy=True) as (proxy, requests): ...   # for HTTPS_PROXY; speaks for every server
"""

from __future__ import annotations

import io
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.s3_proxy import operation_of

from walcast.store import S3Spec
from walcast.store.s3 import S3Store


@dataclass(frozen=True)
class Request:
    """One request; header names in lower case. `operation` is one of support/s3_proxy.py."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        return operation_of(self.method, self.url)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.url).query, keep_blank_values=True)


@dataclass(frozen=True)
class Answer:
    """`body` is what is sent; without a status the connection is closed instead."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


HANG_UP = Answer(0)
LISTING = (
    b"<ListBucketResult><Name>archive</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
)


def s3_error(status: int, code: str, message: str = "no", headers: dict[str, str] | None = None, **more: str) -> Answer:
    inside = "".join(f"<{name}>{text}</{name}>" for name, text in {"Code": code, "Message": message, **more}.items())
    return Answer(status, f"<Error>{inside}</Error>".encode(), headers or {})


def friendly(request: Request) -> Answer:
    """What an S3 server with nothing in it says."""
    if request.operation == "LIST":
        return Answer(body=LISTING)
    if request.operation in ("MULTIPART", "COMPLETE"):
        begun = request.operation == "MULTIPART"
        kind = "InitiateMultipartUploadResult" if begun else "CompleteMultipartUploadResult"
        return Answer(body=f"<{kind}><UploadId>up</UploadId></{kind}>".encode())
    if request.operation == "DELETE":
        return Answer(body=b"<DeleteResult></DeleteResult>")
    if request.operation == "GET":
        return s3_error(404, "NoSuchKey")
    sum_of_part = {"x-amz-checksum-crc32": "AAAAAA=="} if request.operation == "PART" else {}
    return Answer(headers={"ETag": '"e"', **sum_of_part})


@contextmanager
def captured(
    spec: S3Spec, answer: Callable[[Request], Answer] = friendly, *, keys: bool = True
) -> Iterator[tuple[S3Store, list[Request]]]:
    """A store whose requests, signed and ready to be sent, are answered here; with `keys` it has some."""
    from botocore.awsrequest import AWSResponse

    requests: list[Request] = []

    def send(request: Any, **_: object) -> AWSResponse:
        body = request.body.read() if hasattr(request.body, "read") else request.body or b""
        headers = {name.lower(): _text(value) for name, value in request.headers.items()}
        requests.append(Request(request.method, request.url, headers, body))
        given = answer(requests[-1])
        return AWSResponse(request.url, given.status, given.headers, _Raw(given.body))

    with S3Store(replace(spec, access_key_id="AKIA", secret_access_key="secret") if keys else spec) as store:
        store._client().meta.events.register("before-send.s3", send)
        yield store, requests


class _Raw(io.BytesIO):
    """As botocore reads urllib3's answers."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        yield self.read()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def answering(
    answer: Callable[[Request], Answer], tls: Path | None = None, *, proxy: bool = False
) -> Iterator[tuple[str, list[Request]]]:
    """A server on loopback, and the requests it got. As a `proxy` it ends the TLS of its clients: it sees all URLs."""
    requests: list[Request] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if tls is not None:
        context.load_cert_chain(tls)

    class Handler(_Handler):
        def take(self, request: Request) -> Answer:
            requests.append(request)
            return answer(request)

    Handler.context = context
    with _Quiet(("127.0.0.1", 0), Handler) as server:
        server.context = context if tls and not proxy else None
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if server.context else 'http'}://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that signs itself, so it is its own CA."""
    path = folder / "server.pem"
    if not path.exists():
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", path, "-out", path, "-days", "2", "-subj", "/CN=walcast test"]
        subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        key = path.read_text() if "PRIVATE KEY" in path.read_text() else ""
        assert key, "openssl wrote over the key"
    return path


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.context is not None:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that did not like the certificate


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 10
    context: ssl.SSLContext
    prefix = ""

    def take(self, request: Request) -> Answer:
        raise NotImplementedError

    def do_CONNECT(self) -> None:
        """Be the server that the client thinks it reaches."""
        self.send_response_only(200)
        self.end_headers()
        self.prefix = "https://" + self.path.removesuffix(":443")
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        url = self.prefix + self.path if self.path.startswith("/") else self.path
        answer = self.take(Request(self.command, url, headers, body))
        if not answer.status:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(answer.body if self.command != "HEAD" else b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = respond  # noqa: N815 - names of http.server

    def finish(self) -> None:
        super().finish()
        for end in (self.rfile, self.wfile, self.connection):  # those of TLS, where it came in between
            end.close()

    def log_message(self, *_: object) -> None:
        pass
