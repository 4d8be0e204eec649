"""Token files: who may have written them, what they say, and whose a token is."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.certs import token_file, token_of

from walcast import wire
from walcast.access.credentials import Credentials
from walcast.access.names import is_name
from walcast.access.tokens import (
    FILE_BYTES,
    PRESENTED_CHARACTERS,
    Tokens,
    bearer,
    is_token,
    new_token,
    parse_tokens,
    read_tokens,
    token_in,
)
from walcast.errors import ConfigError

PARTS = st.sampled_from([" ", "\n", "#", "sha256:", "wct_", "a" * 64, "A" * 43, "é", "\u2028", "\0", "name"])
LINES = st.lists(PARTS, max_size=30).map(lambda parts: "".join(parts).encode())
NEAR = wire.Address("127.0.0.1", 1)


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_tokens(path)
    return str(caught.value)


def test_a_name_may_have_several_tokens_while_they_are_changed(tmp_path: Path) -> None:
    (old, old_line), (new, new_line) = token_of("edge-1"), token_of("edge-1")
    own, _ = token_of("me")
    tokens = read_tokens(token_file(tmp_path / "t", "# comment", "", own, old_line, f"  {new_line}  "))
    assert tokens.own == own
    assert [tokens.identity(token) for token in (old, new, own)] == ["edge-1", "edge-1", None]
    assert tokens.names == ["edge-1"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o602])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = token_file(tmp_path / "t", new_token())
    path.chmod(mode)
    assert "chmod" in refused(path)
    path.chmod(0o400)
    assert read_tokens(path).own


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = token_file(tmp_path / "t", new_token())
    os.chown(path, 65534, 65534)
    assert "65534" in refused(path)


def test_links_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    file = token_file(tmp_path / "t", new_token())
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for name in ("link", "fifo", "folder", "missing", "t/t"):
        refused(tmp_path / name)
    refused(Path("/dev/zero"))


@pytest.mark.parametrize(
    "lines",
    [
        ("wct_short",),
        (new_token(), new_token()),
        ("edge-1 sha256:12",),
        ("edge-1 md5:" + "0" * 64,),
        ("edge 1 sha256:" + "0" * 64,),
        ("a\x1bb sha256:" + "0" * 64,),
        ("x" * 201 + " sha256:" + "0" * 64,),
        ("a sha256:" + "0" * 64, "b sha256:" + "0" * 64),
        tuple(f"n{number} sha256:{number:064x}" for number in range(1001)),
        ("#" * FILE_BYTES,),
    ],
)
def test_a_file_with_a_line_that_means_nothing_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    message = refused(token_file(tmp_path / "t", *lines))
    assert not any(line in message for line in lines)  # it may be a secret with a slip of the pen
    assert message.isprintable()


@given(st.one_of(st.binary(max_size=400), LINES))
def test_any_bytes_are_a_token_file_or_a_configuration_error(data: bytes) -> None:
    try:
        tokens = parse_tokens(data, Path("t"))
    except ConfigError:
        return
    assert tokens.own == "" or is_token(tokens.own)
    assert all(is_name(name) and len(digest) == 32 for name, digest in tokens.accepted)


def test_what_is_no_token_is_nobodys(tmp_path: Path) -> None:
    token, line = token_of("edge-1")
    tokens = read_tokens(token_file(tmp_path / "t", line))
    digest = line.rpartition(":")[2]
    for presented in (None, "", "wct_", token[:-1], token + "A", token.upper(), digest, "x" * 10_000_000, "wct_é" * 20):
        assert tokens.identity(presented) is None


def test_every_hash_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [token_of(f"n{number}") for number in range(5)]
    tokens = Tokens(accepted=tuple((f"n{i}", bytes.fromhex(line[-64:])) for i, (_, line) in enumerate(made)))
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for presented in (made[0][0], made[-1][0], new_token()):
        compared.clear()
        tokens.identity(presented)
        assert len(compared) == len(made)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer wct_a", "wct_a"),
        ("bearer  wct_a ", "wct_a"),
        ("Basic wct_a", None),
        ("Bearer", None),
        ("Bearer a b", None),
        ("", None),
        (None, None),
        ("Bearer " + "a" * PRESENTED_CHARACTERS, None),
    ],
)
def test_a_bearer_is_read_as_http_has_it(value: str | None, token: str | None) -> None:
    assert token_in(value) == token


def test_no_token_is_in_what_is_printed_of_it(tmp_path: Path) -> None:
    token, line = token_of("edge-1")
    path = token_file(tmp_path / "t", token, line)
    by_file, given = Credentials(wire.Tls(token_file=path)), Credentials(wire.Tls(), token)
    assert by_file.present(NEAR) == given.present(NEAR) == (("authorization", bearer(token)),)
    for shown in (by_file, given, by_file.loaded, given.loaded, read_tokens(path), vars(by_file)):
        assert token not in repr(shown)
        assert line[-64:] not in repr(shown)
    for wrong in ("secret", "wct_secret", token + "="):
        with pytest.raises(ConfigError) as caught:
            Credentials(wire.Tls(), wrong)
        assert wrong not in str(caught.value)
