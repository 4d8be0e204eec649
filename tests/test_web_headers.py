"""Headers on their way: what a client says never becomes what an edge says, and no byte is read one way here and
another way there."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walcast.errors import ConfigError
from walcast.web import headers as h
from walcast.web.forwarding import BadRequest, Head, answer_headers, body_length, request_to
from walcast.web.options import Options
from walcast.web.proof import Origin, proof_of
from walcast.web.spool import EMPTY_SHA256

NOW_S = 1_700_000_000.0
CLIENT = Origin("203.0.113.9", "shop.example", "https")
SECRET = Options.of(secret="of all hosts")

LATIN1 = st.binary(max_size=20).map(lambda raw: raw.decode("latin-1"))
TEXTS = st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=20)
NAMES = st.sampled_from(
    [
        "walcast-forwarded", "walcast_forwarded", "walcast-not-primary", "walcast-token", "walcast-stale",
        "walcast-x", "x-forwarded-for", "x_forwarded_for", "x-forwarded-host", "x-forwarded-proto",
        "x-forwarded-port", "x-forwarded", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "via",
        "x-original-url", "x-rewrite-url", "host", "content-length", "content_length", "transfer-encoding",
        "transfer_encoding", "te", "trailer", "upgrade", "connection", "keep-alive", "proxy-connection",
        "proxy-authorization", "expect", "http2-settings", "cookie", "accept", "content-type", "x-custom",
        "authorization", "range", "if-none-match",
    ]
)  # fmt: skip
ANY_NAME = NAMES | st.text(st.characters(max_codepoint=255), min_size=1, max_size=12).map(str.lower)
VALUES = TEXTS | LATIN1 | NAMES | st.lists(NAMES, max_size=3).map(", ".join)
HEADERS = st.lists(st.tuples(ANY_NAME, VALUES), max_size=12)


def as_cgi(name: str) -> str:
    """What an app at the primary knows a header by."""
    return name.upper().replace("-", "_")


OURS = {
    "HOST", "WALCAST_FORWARDED", "X_FORWARDED_FOR", "X_FORWARDED_HOST", "X_FORWARDED_PROTO", "CONTENT_LENGTH",
    "TRANSFER_ENCODING",
}  # fmt: skip
NEVER = {
    "CONNECTION", "KEEP_ALIVE", "PROXY_CONNECTION", "PROXY_AUTHORIZATION", "PROXY_AUTHENTICATE", "TE", "TRAILER",
    "UPGRADE", "HTTP2_SETTINGS", "EXPECT", "WALCAST_NOT_PRIMARY", "WALCAST_STALE", "FORWARDED", "X_REAL_IP", "VIA",
    "X_CLIENT_IP", "TRUE_CLIENT_IP", "X_ORIGINAL_URL", "X_REWRITE_URL", "X_FORWARDED_PORT", "X_FORWARDED",
}  # fmt: skip


@given(HEADERS)
def test_no_header_of_a_client_is_taken_for_one_of_ours(headers: h.Headers) -> None:
    passed = h.to_forward(headers, trust_forwarded=False)
    assert not {as_cgi(name) for name, _ in passed} & (OURS | NEVER)
    assert not any(as_cgi(name).startswith(("X_FORWARDED", "WALCAST_")) and name != h.TOKEN for name, _ in passed)
    for name, value in passed:
        assert (name, value) in [(named, said.strip(" \t")) for named, said in headers]
        assert name.isascii()
        assert "_" not in name
        assert not set(value) & set("\r\n\0")


@settings(max_examples=200)
@given(HEADERS, st.sampled_from(["GET", "POST", "HEAD", "DELETE"]), st.sampled_from([0, 5]), LATIN1, LATIN1)
def test_what_goes_out_is_one_request_that_says_what_the_edge_says(
    headers: h.Headers, method: str, length: int, path: str, query: str
) -> None:
    head = Head(method, "/" + path, query, headers, CLIENT)
    request = request_to("https://home:8443/shop/", head, [], length, EMPTY_SHA256, NOW_S, SECRET)
    pairs = [(name.decode("ascii").lower(), value.decode("latin-1")) for name, value in request.headers]
    told = {as_cgi(name): value for name, value in pairs}
    for name in OURS - {"CONTENT_LENGTH", "TRANSFER_ENCODING"}:
        assert sum(as_cgi(other) == name for other, _ in pairs) == 1
    assert (told["HOST"], told["X_FORWARDED_FOR"]) == ("home:8443", "203.0.113.9")
    assert (told["X_FORWARDED_HOST"], told["X_FORWARDED_PROTO"]) == ("shop.example", "https")
    framing = [pair for pair in pairs if as_cgi(pair[0]) in ("CONTENT_LENGTH", "TRANSFER_ENCODING")]
    bodyless = length == 0 and method in ("GET", "HEAD")
    assert framing == ([] if bodyless else [("content-length", str(length))])
    target = request.url.target.decode("ascii")
    assert target.startswith("/shop/")
    proof = proof_of(told["WALCAST_FORWARDED"], method, target[len("/shop") :], NOW_S, SECRET.secrets)
    assert (proof.origin, proof.body_sha256) == (CLIENT, EMPTY_SHA256)
    try:
        sent = h11.Connection(h11.CLIENT).send(
            h11.Request(method=request.method, target=request.url.target, headers=request.headers)
        )
    except h11.LocalProtocolError:
        return  # answered with 400
    assert sent is not None
    there = h11.Connection(h11.SERVER)
    there.receive_data(sent)
    read = there.next_event()
    assert isinstance(read, h11.Request)
    assert [(name.lower(), value) for name, value in request.headers] == list(read.headers)
    if length == 0:
        assert isinstance(there.next_event(), h11.EndOfMessage)
    assert there.next_event() in (h11.NEED_DATA, h11.PAUSED)


def test_what_a_proxy_of_ours_said_of_the_client_is_passed_on_when_it_is_trusted() -> None:
    said = [
        ("x-forwarded-for", "198.51.100.7, 10.0.0.1"),
        ("forwarded", "for=198.51.100.7"),
        ("x-real-ip", "198.51.100.7"),
    ]
    options = Options.of(trust_forwarded=True)
    request = request_to("http://home", Head("GET", "/", "", said, CLIENT), [], 0, EMPTY_SHA256, NOW_S, options)
    told = {name.decode(): value.decode() for name, value in request.headers}
    assert {name: told[name] for name, _ in said} == dict(said)
    assert told["x-forwarded-host"] == "shop.example"


@pytest.mark.parametrize("trust", [False, True])
def test_a_client_cannot_have_what_a_proxy_said_of_it_dropped(trust: bool) -> None:
    """By naming it in Connection, which some proxies let pass."""
    listed = [
        ("connection", "X-Forwarded-For, Forwarded, x-real-ip, Walcast-Forwarded"),
        ("x-forwarded-for", "198.51.100.7"),
        ("forwarded", "for=198.51.100.7"),
        ("x-real-ip", "198.51.100.7"),
    ]
    passed = h.to_forward(listed, trust_forwarded=trust)
    assert passed == (listed[1:] if trust else [])


CONNECTION = [
    ("close", ["x-secret", "cookie"]),
    ("X-Secret", ["cookie"]),
    ("keep-alive,X-SECRET , x", ["cookie"]),
    ("x_secret", ["x-secret", "cookie"]),
    (",,", ["x-secret", "cookie"]),
]


@pytest.mark.parametrize(("named", "expected"), CONNECTION)
def test_what_connection_names_stays_between_neighbours(named: str, expected: list[str]) -> None:
    listed = [("connection", named), ("x-secret", "1"), ("cookie", "a=b")]
    assert [name for name, _ in h.to_forward(listed, trust_forwarded=False)] == expected
    assert [name for name, _ in h.to_answer(listed)] == expected


def test_white_space_around_a_value_is_no_part_of_it() -> None:
    """Some servers leave it there, and it could not be sent on."""
    assert h.to_forward([("x-a", " \tb c\t "), ("x-d", " ")], trust_forwarded=False) == [("x-a", "b c"), ("x-d", "")]


# Answers


def test_an_answer_keeps_what_is_the_apps_own() -> None:
    own = [
        ("content-type", "text/html"), ("content-length", "5"), ("set-cookie", "a=b"), ("set-cookie", "c=d"),
        ("location", "/there"), ("walcast-token", "1-2"), ("walcast-unconfirmed", "0/1"), ("etag", "x"), ("x_y", "z"),
    ]  # fmt: skip
    between = [
        ("connection", "close, x-secret"), ("x-secret", "1"), ("keep-alive", "timeout=5"), ("server", "nginx"),
        ("date", "today"), ("upgrade", "h2c"), ("trailer", "x"), ("walcast-not-primary", "1"), ("x-bad", "a\rb"),
        ("proxy-authenticate", "Basic"), ("x-nul", "\0"),
    ]  # fmt: skip
    raw = [(name.title().encode(), value.encode()) for name, value in own + between]
    assert answer_headers(raw) == own


def test_an_answer_has_one_length() -> None:
    """One that is chunked has none beside, whatever its header says (RFC 9112, 6.3)."""
    assert h.to_answer([("content-length", "3"), ("transfer-encoding", "chunked"), ("etag", "x")]) == [("etag", "x")]


def test_connection_cannot_take_the_length_or_the_cookies_away() -> None:
    listed = [("connection", "content-length, set-cookie, content-type")]
    kept = [("content-length", "3"), ("set-cookie", "a=b"), ("content-type", "text/plain")]
    assert h.to_answer(listed + kept) == kept


# Bodies


@pytest.mark.parametrize(
    ("content_length", "transfer_encoding", "expected"),
    [
        (None, None, 0), ("0", None, 0), ("5", None, 5), ("100", None, 100), ("  7 ", None, 7), ("007", None, 7),
        (None, "chunked", None), (None, " Chunked ", None), ("", None, 0),
        ("101", None, 413), ("9" * 18, None, 413), ("9" * 5000, None, 413),
        ("+5", None, 400), ("-5", None, 400), ("5_0", None, 400), ("0x5", None, 400), ("5,5", None, 400),
        ("\u0665", None, 400), ("\xb2", None, 400), ("5 5", None, 400), ("NaN", None, 400),
        ("5", "chunked", 400), ("0", "chunked", 400), (None, "gzip, chunked", 400), (None, "identity", 400),
        (None, "chunked, chunked", 400), (None, "xchunked", 400), (None, "chunked\x0b", 400),
    ],
)  # fmt: skip
def test_the_length_of_a_body_is_clear_or_it_is_refused(
    content_length: str | None, transfer_encoding: str | None, expected: int | None
) -> None:
    if expected in (400, 413):
        with pytest.raises(BadRequest) as caught:
            body_length(content_length, transfer_encoding, 100)
        assert caught.value.status == expected
    else:
        assert body_length(content_length, transfer_encoding, 100) == expected


@given(st.none() | TEXTS, st.none() | TEXTS)
def test_anything_may_come_as_a_length(content_length: str | None, transfer_encoding: str | None) -> None:
    try:
        found = body_length(content_length, transfer_encoding, 100)
    except BadRequest:
        return
    assert found is None or 0 <= found <= 100


# Cookies


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("walcast=1-2", ["1-2"]),
        ("a=b; walcast=1-2; c=d", ["1-2"]),
        ("walcast=1-2;walcast=3-4", ["1-2", "3-4"]),
        ('walcast="1-2"', ["1-2"]),
        (" walcast = 1-2 ", ["1-2"]),
        ("xwalcast=1-2; walcastx=3; Walcast=4; walcast", []),
        ("walcast=", [""]),
        ("a=b,walcast=1-2", []),
        (";;=;", []),
        ("", []),
    ],
)
def test_the_cookies_of_one_name(header: str, expected: list[str]) -> None:
    assert list(h.cookies(header, "walcast")) == expected


def test_a_token_is_given_as_a_cookie_that_no_script_reads() -> None:
    cookie, token = h.token_headers("1-2.ab", cookie="walcast", max_age_s=60, secure=False)
    assert cookie == ("set-cookie", "walcast=1-2.ab; Path=/; Max-Age=60; HttpOnly; SameSite=Lax")
    assert token == ("walcast-token", "1-2.ab")
    secure = h.token_headers("1-2", cookie="other", max_age_s=5, secure=True)[0][1]
    assert secure == "other=1-2; Path=/; Max-Age=5; HttpOnly; SameSite=Lax; Secure"


# Options


@pytest.mark.parametrize(
    "told",
    [
        {"read_wait_s": -1}, {"read_wait_s": float("nan")}, {"read_wait_s": float("inf")}, {"read_wait_s": "1"},
        {"max_lag_s": -0.1}, {"followers": -1}, {"followers": "1"}, {"followers": 1.5}, {"standalone": "no"},
        {"monotonic_reads": 1}, {"max_waiting": -1}, {"max_body": None}, {"max_connections": 0}, {"on_stale": "stale"},
        {"on_lag": "unavailable"}, {"cookie": "a b"}, {"cookie": ""}, {"cookie": "a;b"}, {"private": "/admin"},
        {"private": ["admin"]}, {"private": [7]}, {"primary_url": "home:80"}, {"primary_url": ""}, {"max_lag": 3},
        {"primary_url": "http://a@home"},
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_named(told: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(told))):
        Options.of(**told)  # type: ignore[arg-type]
