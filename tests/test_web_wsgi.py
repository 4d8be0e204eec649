"""The WSGI middleware as a server and an app see it: when an answer begins, what it carries, and that every body is
closed once. The primary's socket is a fake; the servers are in the other tests."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from support.web_place import Place, place
from support.web_primary import FakePrimary
from support.web_scripted import Scripted, scripted

from walcast.errors import Unavailable
from walcast.position import Position
from walcast.statusfile import State
from walcast.token import NotEnoughFollowers, Token
from walcast.web import WSGIMiddleware
from walcast.web.answers import MAYBE, NO_WAY
from walcast.web.options import Options
from walcast.web.proof import Origin, forwarded_text, token_text
from walcast.web.spool import EMPTY_SHA256
from walcast.web.wsgi import ENVIRON_KEY

SECRET = "of all hosts"
COOKIE = "walcast=2-64; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"
SEEN = COOKIE.replace("walcast", "walcast-seen")


@dataclass
class Got:
    """What a server was given. `log`: what happened, in its order."""

    log: list[str] = field(default_factory=list)
    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    environ: dict[str, Any] = field(default_factory=dict)

    def all(self, name: str) -> list[str]:
        return [value for other, value in self.headers if other.lower() == name]


class Chunks:
    """A body that says what becomes of it."""

    def __init__(self, got: Got, chunks: Iterable[bytes]) -> None:
        self._got = got
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self._got.log.append(f"chunk {chunk.decode()}")
        return chunk

    def close(self) -> None:
        self._got.log.append("closed")


App = Callable[[Got, dict[str, Any], Any], Iterable[bytes]]


def plain(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    got.log.append("app")
    start("200 OK", [("Content-Type", "text/plain")])
    return Chunks(got, [b"a", b"b"])


def lazy(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Begins with its first chunk, as a generator does."""

    def chunks() -> Iterator[bytes]:
        got.log.append("app")
        start("200 OK", [("Content-Type", "text/plain")])
        yield b""
        yield b"a"
        yield b"b"

    return Chunks(got, chunks())


def writing(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """The old way."""
    write = start("200 OK", [("Content-Type", "text/plain")])
    write(b"a")
    return Chunks(got, [b"b"])


def changing(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Thinks of another answer."""
    start("200 OK", [("X-First", "1")])
    try:
        raise ValueError("no")
    except ValueError as error:
        start("500 Oh", [("X-Second", "2")], (type(error), error, error.__traceback__))
    return Chunks(got, [b"ab"])


def call(middleware: Any, method: str = "GET", path: str = "/", body: bytes = b"", **more: Any) -> Got:
    """As a server does."""
    got: Got = middleware.got
    got.__init__()  # type: ignore[misc]
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "10.0.0.9",
        "HTTP_HOST": "edge",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
    } | more
    if body and "HTTP_TRANSFER_ENCODING" not in more and more.get("SERVER_PROTOCOL") is None:
        environ["CONTENT_LENGTH"] = str(len(body))

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        got.log.append(f"begin {status}")
        got.status, got.headers = status, headers

        def write(data: bytes) -> None:
            got.body += data

        return write

    result = middleware(environ, start)
    try:
        for chunk in result:
            got.body += chunk
    finally:
        if hasattr(result, "close"):
            result.close()
    got.environ = environ
    return got


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path / "here") as made:
        yield made


@pytest.fixture(scope="module")
def home() -> Iterator[Scripted]:
    with scripted() as made:
        yield made


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, home: Scripted) -> FakePrimary:
    home.reset()
    made = FakePrimary()
    monkeypatch.setattr("walcast.web.core.Primary", lambda path: made)
    return made


Make = Callable[..., Any]


@pytest.fixture
def make(here: Place, home: Scripted, fake: FakePrimary) -> Iterator[Make]:
    """A middleware around an app."""
    all_made = []

    def made(app: App = plain, **options: Any) -> Any:
        got = Got()
        told = {"primary_url": home.url} | options
        middleware: Any = WSGIMiddleware(lambda environ, start: app(got, environ, start), here.database, **told)
        middleware.got = fake.got = got
        all_made.append(middleware)
        return middleware

    yield made
    for middleware in all_made:
        middleware.close()


@pytest.fixture
def primary_here(here: Place) -> Place:
    here.show(State.PRIMARY)
    return here


# Tokens


@pytest.mark.parametrize("app", [plain, lazy, writing, changing])
def test_the_answer_to_a_write_carries_a_token_of_after_it(make: Make, primary_here: Place, app: App) -> None:
    got = call(make(app), "POST")
    assert got.body == b"ab"
    assert got.all("set-cookie") == [COOKIE]
    assert got.all("walcast-token") == ["2-64"]
    assert got.all("cache-control") == ["private"]
    assert got.log.count("barrier 0") == 1
    assert got.log.count("closed") == 1
    assert got.log[-1] == "closed"
    began = got.log.index(f"begin {got.status}")
    assert got.log.index("barrier 0") < began
    if "app" in got.log:
        assert got.log.index("app") < got.log.index("barrier 0")


def test_the_last_answer_that_an_app_thinks_of_counts(make: Make, primary_here: Place) -> None:
    got = call(make(changing), "POST")
    assert (got.status, got.all("x-first"), got.all("x-second")) == ("500 Oh", [], ["2"])


@pytest.mark.parametrize("app", [plain, lazy, writing])
def test_the_answer_to_a_read_carries_none(make: Make, primary_here: Place, app: App) -> None:
    got = call(make(app))
    assert (got.body, got.headers) == (b"ab", [("Content-Type", "text/plain")])
    assert not [line for line in got.log if "barrier" in line]
    assert got.log.count("closed") == 1


def test_a_read_begins_before_its_end_is_known(make: Make, here: Place) -> None:
    assert call(make(plain)).log == ["app", "begin 200 OK", "chunk a", "chunk b", "closed"]


@pytest.mark.parametrize("app", [plain, lazy])
def test_a_read_that_turns_out_to_write_carries_one(make: Make, primary_here: Place, app: App) -> None:
    def counting(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        environ[ENVIRON_KEY].writes = True
        return app(got, environ, start)

    assert call(make(counting)).all("set-cookie") == [COOKIE]


def test_over_https_the_cookie_is_for_https_alone(make: Make, primary_here: Place) -> None:
    assert call(make(), "POST", **{"wsgi.url_scheme": "https"}).all("set-cookie") == [COOKIE + "; Secure"]


def test_a_token_is_signed_and_named_as_wanted(make: Make, primary_here: Place) -> None:
    got = call(make(secret=SECRET, cookie="mine", cookie_s=5), "POST")
    signed = token_text(Token("2-64"), "", Options.of(secret=SECRET).secrets)
    assert got.all("set-cookie")[0].startswith(f"mine={signed}; Path=/; Max-Age=5;")
    assert got.all("walcast-token") == [signed]


def test_a_private_path_carries_none(make: Make, primary_here: Place) -> None:
    got = call(make(private=["/"]), "POST")
    assert got.headers == [("Content-Type", "text/plain")]


@pytest.mark.parametrize("error", [Unavailable("not now"), OSError(24, "too many files"), ValueError("nonsense")])
@pytest.mark.parametrize(("followers", "said"), [(0, "no token"), (2, "0/2")])
def test_what_was_done_without_a_token_is_not_confirmed(
    make: Make, primary_here: Place, fake: FakePrimary, error: Exception, followers: int, said: str
) -> None:
    fake.error = error
    got = call(make(followers=followers, barrier_s=0), "POST")
    assert (got.status, got.body, got.all("set-cookie"), got.all("walcast-token")) == ("200 OK", b"ab", [], [])
    assert got.all("walcast-unconfirmed") == [said]


@pytest.mark.parametrize("state", [State.STREAMING, State.FENCED, State.STOPPED])
def test_what_was_done_where_the_primary_is_no_more_is_in_doubt(
    make: Make, here: Place, fake: FakePrimary, state: State
) -> None:
    def losing(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        here.show(state)
        return plain(got, environ, start)

    here.show(State.PRIMARY)
    fake.error = Unavailable("not now")
    got = call(make(losing, barrier_s=0), "POST")
    assert (got.status, got.body.decode().strip()) == ("502 Bad Gateway", MAYBE)
    assert (got.all("set-cookie"), got.all("content-type")) == ([], ["text/plain; charset=utf-8"])
    assert got.log.count("closed") == 1
    here.show(State.PRIMARY)
    assert call(make(losing, barrier_s=0)).body == b"ab", "a read is in no doubt"


def test_a_node_that_is_started_again_is_waited_for(make: Make, primary_here: Place, fake: FakePrimary) -> None:
    fake.error, fake.errors = Unavailable("not now"), 3
    assert call(make(barrier_s=20), "POST").all("set-cookie") == [COOKIE]


def test_it_is_said_when_too_few_followers_have_a_write(make: Make, primary_here: Place, fake: FakePrimary) -> None:
    fake.error = NotEnoughFollowers("few", token=Token("2-64"), position=Position(100, 1), applied=1, wanted=2)
    got = call(make(followers=2), "POST")
    assert got.all("set-cookie") == [COOKIE]
    assert got.all("walcast-unconfirmed") == ["1/2"]
    fake.error = None
    got = call(make(followers=2), "POST")
    assert "barrier 2" in got.log
    assert got.all("walcast-unconfirmed") == []


def test_readers_may_carry_tokens_wherever_they_read(make: Make, here: Place) -> None:
    middleware = make(monotonic_reads=True)
    got = call(middleware)
    assert got.all("set-cookie") == [SEEN]
    assert got.all("cache-control") == ["private"]
    here.show(State.PRIMARY)
    got = call(make(monotonic_reads=True, followers=2))
    assert got.all("set-cookie") == [SEEN]
    assert "barrier 0" in got.log, "a read waits for no follower"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (["no-cache"], "private, no-cache"),
        (["public, max-age=60", "s-maxage=9"], "private, max-age=60"),
        (["PRIVATE , No-Store"], "private, No-Store"),
        ([""], "private"),
    ],
)
def test_an_answer_for_one_visitor_is_kept_by_no_cache_for_others(
    make: Make, here: Place, told: list[str], expected: str
) -> None:
    def cached(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start("200 OK", [("Cache-Control", value) for value in told])
        return [b"a"]

    assert call(make(cached, monotonic_reads=True)).all("cache-control") == [expected]
    assert call(make(cached)).all("cache-control") == told, "without a token it is the app's own"


@pytest.mark.parametrize(("name", "cookie"), [("app", "walcast-app"), ("a.b c/ü", "walcast-a-b-c--"), ("", "walcast")])
def test_each_database_has_a_cookie_of_its_own(make: Make, here: Place, name: str, cookie: str) -> None:
    """Cookies of one host are every app's there, on whatever port."""
    here.show(State.PRIMARY, name=name)
    got = call(make(secret=SECRET), "POST")
    token = token_text(Token("2-64"), name, Options.of(secret=SECRET).secrets)
    assert got.all("set-cookie")[0].startswith(f"{cookie}={token};")


@pytest.mark.parametrize("ending", ["", "-seen"])
def test_both_cookies_count(make: Make, here: Place, home: Scripted, ending: str) -> None:
    here.show(name="app", primary_txid=0x65)
    middleware = make(read_wait_s=0)
    assert b"target" in call(middleware, HTTP_COOKIE=f"walcast-app{ending}=2-65").body
    assert call(middleware, HTTP_COOKIE=f"walcast-app{ending}=2-64; walcast=2-ff; walcast-b=2-ff").body == b"ab"


# Errors


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("when", ["at once", "in its body", "without an answer"])
def test_an_apps_error_is_the_servers(make: Make, primary_here: Place, method: str, when: str) -> None:
    def failing(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if when == "at once":
            raise LookupError

        def chunks() -> Iterator[bytes]:
            if when == "in its body":
                raise LookupError
            yield b"a"

        return Chunks(got, chunks())

    middleware = make(failing)
    with pytest.raises((LookupError, AssertionError)):
        call(middleware, method)
    assert middleware.got.log.count("closed") == (0 if when == "at once" else 1)


# A read that turns out to write, where nothing can be written


@pytest.mark.parametrize("app", [plain, lazy, writing])
@pytest.mark.parametrize("monotonic", [False, True])
def test_a_read_that_turns_out_to_write_is_sent_to_the_primary(
    make: Make, here: Place, home: Scripted, app: App, monotonic: bool
) -> None:
    def counting(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        def says(*told: Any) -> Any:
            environ[ENVIRON_KEY].forward = True
            return start(*told)

        return app(got, environ, says)

    got = call(make(counting, monotonic_reads=monotonic), path="/ok/visit")
    assert got.status == "200 OK"
    assert b'"target": "/ok/visit"' in got.body
    assert got.log.count("closed") == 1
    assert got.log.count("begin 200 OK") == 1
    assert home.one.method == "GET"


def test_it_is_not_sent_twice(make: Make, here: Place, home: Scripted) -> None:
    def counting(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        environ[ENVIRON_KEY].forward = True
        return plain(got, environ, start)

    assert call(make(counting), path="/closes-after-body").status.startswith("502")
    assert len(home.seen) == 1


# A primary whose place moves away under a request


def locked(moves: Callable[[], object]) -> App:
    """Finds its database locked once, as the primary's place moves."""

    def made(got: Got, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        got.log.append(f"read {environ['wsgi.input'].read().decode()}")
        moves()
        environ[ENVIRON_KEY].forward = True
        return plain(got, environ, start)

    return made


@pytest.mark.parametrize("body", [b"", b"hello"])
def test_a_write_follows_the_primary_that_moves(make: Make, here: Place, home: Scripted, body: bytes) -> None:
    here.show(State.PRIMARY)
    got = call(make(locked(here.show)), "POST", "/ok", body)
    assert got.status == "200 OK"
    assert b'"target": "/ok"' in got.body
    assert (home.one.size, home.one.whole) == (len(body), True)
    assert got.log[0] == f"read {body.decode()}"
    assert got.log.count("closed") == 1


def test_an_edge_is_told_to_follow_it(make: Make, here: Place, home: Scripted) -> None:
    here.show(State.PRIMARY)
    got = call(make(locked(here.show)), "POST", "/ok", b"hello", HTTP_WALCAST_FORWARDED="t=1")
    assert (got.status, got.all("walcast-not-primary")) == ("503 Service Unavailable", ["1"])
    assert home.seen == []


@pytest.mark.parametrize("told", [{"CONTENT_LENGTH": "70000"}, {"HTTP_TRANSFER_ENCODING": "chunked"}])
def test_a_long_body_does_not_follow(make: Make, here: Place, home: Scripted, told: dict[str, str]) -> None:
    here.show(State.PRIMARY)
    got = call(make(locked(here.show)), "POST", "/ok", bytes(70_000), **told)
    assert got.status == "503 Service Unavailable"
    assert got.all("retry-after") == ["1"]
    assert home.seen == []


def test_a_database_that_stays_locked_is_not_tried_for_ever(make: Make, primary_here: Place, home: Scripted) -> None:
    got = call(make(locked(lambda: None)), "POST", "/ok", b"hello")
    assert got.status == "503 Service Unavailable"
    assert got.log.count("read hello") == 2
    assert home.seen == []


# Where a request never goes


def test_a_name_that_leads_to_a_metadata_service_is_not_asked(
    make: Make, here: Place, home: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its name was found to be when the address was checked."""
    middleware = make(primary_wait_s=0.2)
    monkeypatch.setattr("walcast.appurl._NEVER", (ip_network("127.0.0.0/8"),))
    got = call(middleware, "POST", "/ok", b"hello")
    assert (got.status, home.seen) == ("503 Service Unavailable", [])
    assert home.connections


def test_a_visitor_is_told_that_it_is_not_known_where_the_primarys_app_is(make: Make, here: Place) -> None:
    """And the log, why; not the visitor."""
    for url in ("http://10.0.0.1:8000", "https://169.254.169.254", ""):
        here.show(app_url=url)
        got = call(make(primary_url=None, primary_wait_s=0.1), "POST")
        assert (got.status, got.body.strip()) == ("503 Service Unavailable", NO_WAY.encode())


# What the app at the primary sees


def test_a_forwarded_request_looks_as_it_did_at_the_edge(make: Make, primary_here: Place) -> None:
    origin = Origin("2001:db8::7", "shop.example", "https")
    proof = forwarded_text(origin, "", "POST", "/x%20y?z", EMPTY_SHA256, time.time(), Options.of(secret=SECRET).secrets)
    told = {"HTTP_WALCAST_FORWARDED": proof, "HTTP_X_FORWARDED_FOR": "10.0.0.9", "HTTP_X_FORWARDED_HOST": "x"}
    got = call(make(secret=SECRET), "POST", "/x y", QUERY_STRING="z", **told)
    environ = got.environ
    assert (environ["REMOTE_ADDR"], environ["HTTP_HOST"], environ["wsgi.url_scheme"]) == (
        "2001:db8::7",
        "shop.example",
        "https",
    )
    assert not [key for key in environ if "FORWARDED" in key]
    assert got.all("set-cookie")[0].endswith("; Secure")


def test_the_answer_to_a_read_that_was_sent_on_carries_a_token(make: Make, primary_here: Place) -> None:
    """Its visitor reads at an edge again the next time."""
    assert call(make(), HTTP_WALCAST_FORWARDED="t=1").all("set-cookie") == [SEEN]


@pytest.mark.parametrize("path", ["", "/", "/x"])
def test_what_is_mounted_is_private_by_its_own_path(make: Make, here: Place, home: Scripted, path: str) -> None:
    middleware = make(private=["/mounted"])
    assert call(middleware, "POST", path, SCRIPT_NAME="/mounted").status == "200 OK"
    assert home.one.target == "/mounted" + path
    assert call(middleware, "POST", "/mounted/x", SCRIPT_NAME="/other").body == b"ab"


def test_a_body_may_come_without_a_length_in_http_2(make: Make, here: Place, home: Scripted) -> None:
    for body in (b"hello", b""):
        got = call(make(), "POST", "/ok", body, SERVER_PROTOCOL="HTTP/2")
        assert got.status == "200 OK"
        assert home.seen[-1].size == len(body)
        assert home.seen[-1].whole


def test_a_server_that_refuses_an_answer_leaves_no_connection_open(make: Make, here: Place, home: Scripted) -> None:
    middleware = make(max_connections=1)

    def start(*_: Any) -> Any:
        raise ValueError("no such header")

    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/ok", "wsgi.input": io.BytesIO(), "SERVER_PROTOCOL": "HTTP/1.1"}
    for _ in range(2):
        with pytest.raises(ValueError, match="no such header"):
            middleware(dict(environ), start)
    assert call(middleware, "POST", "/ok").status == "200 OK"


@pytest.mark.parametrize(("found", "status"), [("missing", "200 OK"), ("unreadable", "503 Service Unavailable")])
def test_who_is_alone_is_so_where_no_node_ever_ran(
    make: Make, here: Place, tmp_path: Path, found: str, status: str
) -> None:
    """A file that cannot be read is no reason to write to what may be a replica."""
    here.leave()
    file = Path(f"{here.database}-walcast/status")
    file.unlink() if found == "missing" else file.write_bytes(b"of another version")
    middleware = make(standalone=True, primary_url="http://127.0.0.1:1", primary_wait_s=0.1)
    assert call(middleware, "POST").status == status
