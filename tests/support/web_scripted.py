"""A primary's app that behaves as it is told, good or bad, and remembers all it was asked.

The first part of a path says how: `/silent/x` is answered by `silent`. Nothing here trusts what it reads; the parser is
kept dumb, so that what an edge sends must be plain.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PATIENCE_S = 20.0
CHUNK = 64 << 10


class HungUp(Exception):
    """The other side did."""


@dataclass
class Seen:
    """One request, as it came; `size` and `sha256` of as much of its body as was read. `closed`: its connection was
    closed after it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    raw: bytes
    connection: int
    size: int = 0
    sha256: str = ""
    whole: bool = False
    closed: bool = False

    def all(self, name: str) -> list[str]:
        return [value for other, value in self.headers if other == name]

    def __getitem__(self, name: str) -> str:
        found = self.all(name)
        assert len(found) < 2, f"{name}: {found}"
        return found[0] if found else ""


class Conn:
    """One connection, with what was read of it and not used."""

    def __init__(self, made: socket.socket, number: int, server: Scripted) -> None:
        self.socket = made
        self.number = number
        self.server = server
        self._left = b""

    def _more(self) -> None:
        try:
            data = self.socket.recv(CHUNK)
        except OSError as error:
            raise HungUp from error
        if not data:
            raise HungUp
        self._left += data

    def line(self) -> bytes:
        return self.until(b"\r\n")

    def until(self, end: bytes) -> bytes:
        while end not in self._left:
            self._more()
        found, _, self._left = self._left.partition(end)
        return found

    def some(self, most: int) -> bytes:
        """At least a byte."""
        if not self._left:
            self._more()
        found, self._left = self._left[:most], self._left[most:]
        return found

    def head(self) -> Seen:
        raw = self.until(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        assert version == "HTTP/1.1", first
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return Seen(method, target, headers, raw, self.number)

    def body(self, seen: Seen, most: int | None = None) -> None:
        """Read it, or only so much of it."""
        digest = hashlib.sha256()
        for chunk in self._chunks(seen):
            seen.size += len(chunk)
            digest.update(chunk)
            if most is not None and seen.size >= most:
                return
        seen.sha256, seen.whole = digest.hexdigest(), True

    def _chunks(self, seen: Seen) -> Iterator[bytes]:
        if seen["transfer-encoding"]:
            assert (seen["transfer-encoding"], seen["content-length"]) == ("chunked", "")
            while left := int(self.line(), 16):
                while left:
                    chunk = self.some(left)
                    left -= len(chunk)
                    yield chunk
                assert self.line() == b""
            assert self.line() == b""
        else:
            left = int(seen["content-length"] or "0")
            while left:
                chunk = self.some(left)
                left -= len(chunk)
                yield chunk

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise HungUp from error

    def wait_hung_up(self) -> None:
        """Until the other side does, whatever it says."""
        with suppress(HungUp):
            while True:
                self._left = b""
                self._more()

    def facts(self, seen: Seen, *more: bytes, status: bytes = b"200 OK") -> None:
        """Answer what was seen."""
        told = {"target": seen.target, "size": seen.size, "sha256": seen.sha256, "headers": dict(seen.headers)}
        body = json.dumps(told).encode()
        lines = [b"HTTP/1.1 " + status, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *more]
        self.send(b"\r\n".join([*lines, b"", b""]) + (b"" if seen.method == "HEAD" else body))


Script = Callable[[Conn, Seen], "bool | None"]


@dataclass
class Scripted:
    """The server. `refusals`: connections that are closed at once; `gate`: what a script waits for."""

    listening: socket.socket
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    refusals: int = 0
    not_primary: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    open: set[socket.socket] = field(default_factory=set)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def reset(self) -> None:
        """For the next test."""
        self.seen.clear()
        self.connections = self.refusals = self.not_primary = 0
        for event in (self.gate, self.reached, self.gone):
            event.clear()

    @property
    def one(self) -> Seen:
        """The only request that came."""
        (found,) = self.seen
        return found

    def accept(self) -> None:
        while True:
            try:
                made, _ = self.listening.accept()
            except OSError:
                return
            made.settimeout(PATIENCE_S)
            self.connections += 1
            if self.refusals:
                self.refusals -= 1
                made.close()
                continue
            self.open.add(made)
            threading.Thread(target=self._serve, args=[Conn(made, self.connections, self)], daemon=True).start()

    def _serve(self, conn: Conn) -> None:
        seen = None
        try:
            while True:
                seen = conn.head()
                self.seen.append(seen)
                name = seen.target.split("?")[0].split("/")[1]
                script = SCRIPTS.get(name, ok)
                if not script(conn, seen):
                    return
        except HungUp:
            pass
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.errors.append(error)
        finally:
            self.gone.set()
            self.open.discard(conn.socket)
            conn.socket.close()
            if seen is not None:
                seen.closed = True


# What it does. True: the connection stays open for the next request.


def ok(conn: Conn, seen: Seen) -> bool:
    conn.body(seen)
    conn.facts(seen)
    return True


def closing(conn: Conn, seen: Seen) -> None:
    conn.body(seen)
    conn.facts(seen, b"Connection: close")


def old(conn: Conn, seen: Seen) -> None:
    """HTTP/1.0: the end of the connection is the end of the answer."""
    conn.body(seen)
    conn.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nas of old")


def closes_after_head(conn: Conn, seen: Seen) -> None:
    return


def closes_after_body(conn: Conn, seen: Seen) -> None:
    conn.body(seen)


def closes_once(conn: Conn, seen: Seen) -> bool:
    """After the first request; the next one is answered."""
    conn.body(seen)
    if len(conn.server.seen) > 1:
        conn.facts(seen)
        return True
    return False


def breaks_off(conn: Conn, seen: Seen) -> None:
    conn.body(seen)
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)


def breaks_off_chunked(conn: Conn, seen: Seen) -> None:
    conn.body(seen)
    conn.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n32\r\n" + b"x" * 50 + b"\r\n"
    )


def too_large(conn: Conn, seen: Seen) -> None:
    """Says so when it has seen a little, and reads the rest away for a while."""
    conn.body(seen, 1000)
    conn.send(
        b"HTTP/1.1 413 Too Large\r\nContent-Type: text/plain\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large"
    )
    conn.socket.shutdown(socket.SHUT_WR)
    conn.wait_hung_up()


def too_large_at_once(conn: Conn, seen: Seen) -> None:
    """Says so and hangs up, with the body unread."""
    conn.send(
        b"HTTP/1.1 413 Too Large\r\nContent-Type: text/plain\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large"
    )


def silent(conn: Conn, seen: Seen) -> None:
    conn.body(seen)
    conn.server.reached.set()
    conn.wait_hung_up()


def deaf(conn: Conn, seen: Seen) -> None:
    """Reads nothing of the body, and says nothing."""
    conn.server.gate.wait(PATIENCE_S)


def falls_silent(conn: Conn, seen: Seen) -> None:
    conn.body(seen)
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
    conn.wait_hung_up()


def dribbles(conn: Conn, seen: Seen) -> None:
    """Never silent for long, and never done."""
    conn.body(seen)
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n")
    while not conn.server.gate.wait(0.05):
        conn.send(b"x")


def dribbles_head(conn: Conn, seen: Seen) -> None:
    conn.body(seen)
    conn.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not conn.server.gate.wait(0.05):
        conn.send(b"x")


def early(conn: Conn, seen: Seen) -> bool:
    conn.body(seen)
    conn.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    conn.facts(seen)
    return True


def named(conn: Conn, seen: Seen) -> bool:
    """Headers that are between neighbours."""
    conn.body(seen)
    conn.facts(
        seen, b"Connection: X-Secret, keep-alive", b"X-Secret: between us", b"Keep-Alive: timeout=5", b"Upgrade: h2c",
        b"Server: scripted/1", b"X-Kept: yes", b"Proxy-Authenticate: Basic",
    )  # fmt: skip
    return True


def raw(text: bytes) -> Script:
    """Exactly these bytes, then the end."""

    def script(conn: Conn, seen: Seen) -> None:
        conn.body(seen)
        conn.send(text)

    return script


def two_lengths(conn: Conn, seen: Seen) -> None:
    """Chunked, with a length beside that is a lie."""
    conn.body(seen)
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


def chunked(conn: Conn, seen: Seen) -> bool:
    conn.body(seen)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    conn.send(head + (b"" if seen.method == "HEAD" else b"5;a=b\r\nhello\r\n6\r\n there\r\n0\r\nX-Sum: 1\r\n\r\n"))
    return True


def gated(conn: Conn, seen: Seen) -> bool:
    """The second half of the answer only once the test has seen the first."""
    conn.body(seen)
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    conn.server.gate.wait(PATIENCE_S)
    conn.send(b"6\r\nsecond\r\n0\r\n\r\n")
    return True


def takes_some(conn: Conn, seen: Seen) -> bool:
    """Says to the test when it has the first of the body."""
    conn.body(seen, 1)
    conn.server.reached.set()
    more = Seen("", "", seen.headers, b"", 0)
    left = int(seen["content-length"]) - seen.size
    while left:
        left -= len(conn.some(left))
        seen.size = int(seen["content-length"]) - left
    assert not more.size
    conn.facts(seen)
    return True


def big(conn: Conn, seen: Seen) -> bool:
    """So many zeros as the path says: /big/1000."""
    conn.body(seen)
    size = int(seen.target.rpartition("/")[2])
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % size)
    for begin in range(0, size, 1 << 20):
        conn.send(bytes(min(1 << 20, size - begin)))
    return True


def with_status(conn: Conn, seen: Seen) -> bool:
    """/status/404: as the path says, with a body where there may be one."""
    conn.body(seen)
    status = int(seen.target.split("/")[2])
    if status in (204, 304):
        conn.send(b"HTTP/1.1 %d X\r\nETag: abc\r\n\r\n" % status)
    else:
        conn.facts(seen, b"Location: /there?a=b", b"X-Reason: kept", status=b"%d Some Reason" % status)
    return True


def cookies(conn: Conn, seen: Seen) -> bool:
    conn.body(seen)
    conn.facts(seen, b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2; Expires=Wed, 01 Jan 2031 00:00:00 GMT")
    return True


def moving(conn: Conn, seen: Seen) -> bool:
    """Is not the primary for the first few times."""
    server = conn.server
    if server.not_primary:
        server.not_primary -= 1
        conn.body(seen)
        conn.facts(seen, b"Walcast-Not-Primary: 1", b"Retry-After: 1", status=b"503 Service Unavailable")
        return True
    return ok(conn, seen)


def never_primary(conn: Conn, seen: Seen) -> bool:
    conn.body(seen)
    conn.facts(seen, b"Walcast-Not-Primary: 1", b"Retry-After: 1", status=b"503 Service Unavailable")
    return True


def unavailable(conn: Conn, seen: Seen) -> bool:
    """An error of the app's own: it may have done anything."""
    conn.body(seen)
    conn.facts(seen, b"Retry-After: 7", status=b"503 Service Unavailable")
    return True


LF_HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\nSet-Cookie: c=d\r\n\r\nok"
SCRIPTS: dict[str, Script] = {
    name.replace("_", "-"): script
    for name, script in {
        "ok": ok, "closing": closing, "old": old, "closes_after_head": closes_after_head, "silent": silent,
        "deaf": deaf,
        "closes_after_body": closes_after_body, "closes_once": closes_once, "breaks_off": breaks_off, "early": early,
        "breaks_off_chunked": breaks_off_chunked, "too_large": too_large, "too_large_at_once": too_large_at_once,
        "falls_silent": falls_silent, "dribbles": dribbles, "dribbles_head": dribbles_head, "named": named,
        "two_lengths": two_lengths, "chunked": chunked, "gated": gated, "takes_some": takes_some, "big": big,
        "status": with_status, "cookies": cookies, "moving": moving, "never_primary": never_primary,
        "unavailable": unavailable,
        "garbage": raw(b"\x00\x01\x02 this is no HTTP\r\n\r\n"),
        "huge_head": raw(b"HTTP/1.1 200 OK\r\n" + b"Y: z\r\n" * 30_000 + b"\r\n"),
        "bare_cr": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\rSet-Cookie: c=d\r\n\r\nok"),
        "bare_lf": raw(LF_HEADER),
        "nul": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\0c\r\n\r\nok"),
        "bad_name": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX A: b\r\n\r\nok"),
        "lengths_differ": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"),
        "negative": raw(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"),
        "plus": raw(b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"),
        "switching": raw(b"HTTP/1.1 101 Switch\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nPRI * HTTP/2.0"),
        "odd_status": raw(b"HTTP/1.1 999 \x80\r\nContent-Length: 2\r\n\r\nok"),
    }.items()
}  # fmt: skip


@contextmanager
def scripted() -> Iterator[Scripted]:
    """Until the block ends; then nothing of it may have failed."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    made = Scripted(listening)
    thread = threading.Thread(target=made.accept, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.gate.set()
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for connection in list(made.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)
    assert not made.errors, made.errors
