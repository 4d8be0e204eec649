"""The path that is sent on, and the paths that never are."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walcast.web.target import is_below, is_doubtful, target_of

LATIN1 = st.binary(max_size=40).map(lambda raw: raw.decode("latin-1"))
PATHS = LATIN1.map(lambda text: "/" + text)

PRIVATE = ("/admin", "/me/keys/", "/Über")


def wsgi(text: str) -> str:
    """As a server puts a path into PATH_INFO."""
    return text.encode().decode("latin-1")


@given(PATHS, LATIN1)
def test_the_app_at_the_primary_sees_the_same_path_and_the_same_query(path: str, query: str) -> None:
    target = target_of(path, query)
    assert target.isascii()
    assert target.isprintable()
    assert " " not in target
    there, _, asked = target.partition("?")
    assert unquote_to_bytes(there).decode("latin-1") == "/" + path.lstrip("/")
    assert unquote_to_bytes(asked) == unquote_to_bytes(query.encode("latin-1"))


@given(PATHS, LATIN1)
def test_what_was_sent_on_once_would_be_sent_on_alike(path: str, query: str) -> None:
    """The primary's app makes the same of what it sees: that is what is signed."""
    target = target_of(path, query)
    there, _, asked = target.partition("?")
    assert target_of(unquote_to_bytes(there).decode("latin-1"), asked) == target


@given(PATHS, LATIN1)
def test_no_path_leads_to_another_host(path: str, query: str) -> None:
    assert urlsplit(target_of(path, query)).netloc == ""
    assert urlsplit("http://home" + target_of(path, query)).netloc == "home"


@pytest.mark.parametrize(
    ("path", "query", "target"),
    [
        ("/", "", "/"),
        ("/a b", "", "/a%20b"),
        ("/a?b#c", "d=e?f", "/a%3Fb%23c?d=e?f"),
        ("/100%", "q=100%25&x=%", "/100%25?q=100%25&x=%"),
        ("/%2e%2e/x", "", "/%252e%252e/x"),
        (wsgi("/naïve/日本"), wsgi("日"), "/na%C3%AFve/%E6%97%A5%E6%9C%AC?%E6%97%A5"),
        ("/a+b;c=d,e:f@g", "a+b&c[]=d", "/a+b;c=d,e:f@g?a+b&c%5B%5D=d"),
        ("/a\r\nX: y", "a\r\nX: y", "/a%0D%0AX%3A%20y".replace("%3A", ":") + "?a%0D%0AX:%20y"),
        ("//evil.example/x", "", "/evil.example/x"),
        ("/\x00", "\x00", "/%00?%00"),
    ],
)
def test_a_target(path: str, query: str, target: str) -> None:
    assert target_of(path, query) == target


@pytest.mark.parametrize(
    "path",
    [
        "/admin",
        "/admin/",
        "/admin/users",
        "//admin",
        "///admin//users",
        "/./admin",
        "/x/../admin",
        "/x/..//admin/",
        "/../admin",
        "/admin/.",
        "/admin/./users",
        "/admin/../admin",
        "\\admin",
        "/x\\..\\admin\\users",
        "/\\admin",
        "/ADMIN",
        "/Admin/Users",
        "/aDmIn/",
        "admin",
        "/me/keys",
        "/me/keys/",
        "/me/keys/1",
        "/ME//Keys/",
        wsgi("/Über"),
        wsgi("/über/x"),
        wsgi("/ÜBER/"),
    ],
)
def test_a_private_path_is_known_however_it_is_written(path: str) -> None:
    assert is_below(path, PRIVATE)


@pytest.mark.parametrize(
    "path",
    ["/", "/administrators", "/admin.html", "/x/admin", "/me", "/me/key", "/me/keysets", "/admin-x/y", "/\xff", ""],
)
def test_what_only_looks_like_it_is_not_private(path: str) -> None:
    assert not is_below(path, PRIVATE)


def test_all_can_be_private() -> None:
    assert all(is_below(path, ["/"]) for path in ("/", "/x", "//x", ""))


@pytest.mark.parametrize("prefix", ["//admin", "/admin//", "/x/../admin", "/ADMIN"])
def test_a_prefix_may_be_written_otherwise_too(prefix: str) -> None:
    assert is_below("/admin/users", [prefix])
    assert is_below("/admin", [prefix])


# Servers and proxies differ in what they make of these. One that resolves or cuts away before it looks at the path must
# not find a private one in it: what is sent on is either not doubtful, or nothing that resolves.
TRICKS = [
    "/x/../admin", "/./admin", "/x/..;/admin", "/x/.;a=b/admin", "/..\\admin", "/x\\..\\admin", "/\x00/admin",
    "/admin\x00", "admin", "", "*", "home:443", "/..", "/.", "/x/..", "/x/.", "/.;", "/x/..;",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_a_path_that_might_be_another_one_elsewhere_is_not_sent_on(path: str) -> None:
    assert is_doubtful(path)


@pytest.mark.parametrize(
    "path", ["/", "/a/b", "/a.b/..c/d../...", "/.well-known/x", "/a;b/c", wsgi("/日本"), "/a//b", "//a"]
)
def test_ordinary_paths_are_sent_on(path: str) -> None:
    assert not is_doubtful(path)


def resolved(path: str) -> str:
    """What the most obliging server might make of it: backslashes are slashes, `;…` is cut away, dots are resolved."""
    parts: list[str] = []
    for raw in path.replace("\\", "/").split("/"):
        part = raw.partition(";")[0]
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part.casefold())
    return "/".join(parts)


PIECES = st.sampled_from(["/", "//", ".", "..", "\\", ";", "a", "admin", "ADMIN", "x", "%2e", "%2f", " ", "\0"])


@given(st.lists(PIECES, max_size=12).map(lambda pieces: "/" + "".join(pieces)))
def test_no_path_that_is_sent_on_resolves_to_a_private_one(path: str) -> None:
    if not is_below(path, ["/admin"]) and not is_doubtful(path) and ";" not in path:
        assert not (resolved(path) + "/").startswith("admin/")
