"""App servers and clients for tests of the middleware: gunicorn and uvicorn in processes of their own, on ports that
the system chooses."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.nodes import ENVIRONMENT, TESTS

PATIENCE_S = 20.0
SILENCE_S = 0.5  # of a server that waits for more
# What a client says of itself is believed by none of them.
NOBODY = ["--forwarded-allow-ips", "192.0.2.1"]
GUNICORN = [
    "gunicorn",
    "--no-control-socket",
    "--workers",
    "1",
    "--log-level",
    "warning",
    "--bind",
    "fd://{fd}",
    *NOBODY,
]
UVICORN = ["uvicorn", "--no-access-log", "--log-level", "warning", "--fd", "{fd}", *NOBODY]
SERVERS = {
    "sync": [*GUNICORN, "--worker-class", "sync", "support.web_app_wsgi:app"],
    "gthread": [*GUNICORN, "--worker-class", "gthread", "--threads", "16", "support.web_app_wsgi:app"],
    "gevent": [*GUNICORN, "--worker-class", "gevent", "support.web_app_wsgi:app"],
    "uvicorn": [*UVICORN, "support.web_app_asgi:app"],
    "flask": [*GUNICORN, "--worker-class", "gthread", "--threads", "16", "support.web_app_flask:app"],
}


@dataclass
class Answer:
    """To one request. Header names are lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for other, value in self.headers if other == name]

    def __getitem__(self, name: str) -> str:
        """The one header of a name; "" without one."""
        found = self.all(name)
        assert len(found) < 2, f"{name}: {found}"
        return found[0] if found else ""

    @property
    def facts(self) -> dict[str, Any]:
        assert self["content-type"] == "application/json", (self.status, self.body)
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def cookie(self) -> str:
        """The token's, as a browser sends it back."""
        found = [value.partition(";")[0] for value in self.all("set-cookie") if value.startswith("walcast")]
        assert len(found) < 2
        return found[0] if found else ""


@dataclass
class Server:
    """A running app server. `host` is what is asked unless another one is."""

    kind: str
    port: int
    process: subprocess.Popen[bytes]
    said: Path
    host: str = "edge"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asynchronous(self) -> bool:
        return self.kind == "uvicorn"

    def connect(self, timeout_s: float = PATIENCE_S) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def ask(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: Any = None, *, host: str = ""
    ) -> Answer:
        """One request on a connection of its own. http.client's errors when there is no whole answer."""
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            given = {"Host": host or self.host, **(headers or {})}
            made.request(method, target, body, given, encode_chunked="Transfer-Encoding" in given)
            got = made.getresponse()
            return Answer(got.status, [(k.lower(), v) for k, v in got.getheaders()], got.read())
        finally:
            made.close()

    def get(self, target: str = "/", *, host: str = "", **headers: str) -> Answer:
        return self.ask("GET", target, {k.replace("_", "-"): v for k, v in headers.items()}, host=host)

    def post(self, target: str = "/", body: Any = b"", *, host: str = "", **headers: str) -> Answer:
        return self.ask("POST", target, {k.replace("_", "-"): v for k, v in headers.items()}, body, host=host)

    def raw(self, data: bytes, answers: int = 1) -> bytes:
        """What comes back for these bytes: so many answers, and whatever else is said by the time the server hears that
        nothing more comes. Some servers drop everything when they hear that."""
        with self.connect(SILENCE_S) as made, suppress(ConnectionError):
            made.sendall(data)
            found = b""
            with suppress(TimeoutError):
                while len(split(found)) < answers and (more := made.recv(1 << 16)):
                    found += more
            made.settimeout(PATIENCE_S)
            with suppress(OSError):
                made.shutdown(socket.SHUT_WR)
            return found + read_all(made)
        return b""

    @property
    def workers(self) -> list[int]:
        """The processes that answer."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children] or [pid]

    def peak_bytes(self) -> int:
        """Memory that the one process which answers had at most."""
        (pid,) = self.workers
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        raise AssertionError("no VmHWM")


def read_all(made: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionError):
        while data := made.recv(1 << 16):
            found += data
    return found


def answer_of(data: bytes) -> Answer:
    """The first answer in what a server said."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Answer(int(first.split()[1]) if first else 0, headers, body)


def split(data: bytes) -> list[Answer]:
    """The answers that are whole in what a server said; those without a length go on to its end."""
    found = []
    while b"\r\n\r\n" in data:
        answer = answer_of(data)
        size = int(answer["content-length"]) if answer["content-length"] else len(answer.body)
        if len(answer.body) < size:
            break
        answer.body, data = answer.body[:size], answer.body[size:]
        found.append(answer)
    return found


def listening() -> socket.socket:
    """On a port that the system chooses; whoever connects waits until a server takes it."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen(128)
    return made


@contextmanager
def served(
    kind: str, sites: dict[str, dict[str, Any]], folder: Path, made: socket.socket | None = None, *more: str
) -> Iterator[Server]:
    """An app server with these sites, ready as soon as somebody asks."""
    made = made or listening()
    port, fd = made.getsockname()[1], made.fileno()
    said = folder / f"{kind}-{port}.log"
    command = [sys.executable, "-m", *(part.format(fd=fd) for part in SERVERS[kind]), *more]
    with said.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=ENVIRONMENT | {"WEB_SITES": json.dumps(sites), "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=log,
            pass_fds=[fd],
            cwd=TESTS,
        )
    made.close()
    try:
        yield Server(kind, port, process, said)
    finally:
        process.send_signal(signal.SIGINT)  # gunicorn would let SIGTERM wait for idle connections
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE_S)
        print(f"--- {kind} on {port}:\n{said.read_text()[-3000:]}")
