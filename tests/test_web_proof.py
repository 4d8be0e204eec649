"""What hosts prove to each other: tokens, and whom a forwarded request is for. Whatever else comes is not believed, and
raises nothing."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walcast.token import Token
from walcast.web.options import Options
from walcast.web.proof import (
    FRESH_S,
    Flaw,
    Origin,
    Secrets,
    Unproven,
    forwarded_name,
    forwarded_text,
    newest_token,
    proof_of,
    token_keys,
    token_text,
)
from walcast.web.spool import EMPTY_SHA256

NAME = "app"
SECRET = Options.of(secret="of all hosts").secrets
OTHER = Options.of(secret="of somebody else").secrets
BOTH = Options.of(secret=["of somebody else", "of all hosts"]).secrets
NONE: tuple[bytes, ...] = ()
NOW_S = 1_700_000_000.9

ANY = st.text(st.characters(), max_size=60)  # also lone surrogates, and digits that int() takes
ODD = st.text(st.sampled_from("0123456789abcdef-.;=t+_ \t\0\n\x85\xa0\xb2\u0663\u2003\ud800"), max_size=40)
NUMBERS = st.integers(0, 0xFFFFFFFF)
TOKENS = st.builds(Token.of, NUMBERS, st.integers(0, 0xFFFFFFFFFFFFFFFF))
LATIN1 = st.binary(max_size=30).map(lambda raw: raw.decode("latin-1"))
ORIGINS = st.builds(Origin, LATIN1, LATIN1, st.sampled_from(["http", "https"]))
ORIGIN_TEXTS = ("2001:db8::7", "shop.example:8443")
ORIGIN = Origin(*ORIGIN_TEXTS, "https")
NO_INT = ["", " ", "+5", "-5", "5_0", "0x5", "1,5", "\u0663", "\xb2", "NaN", "1" * 5000, "5\0"]


def test_what_an_options_secret_signs_is_not_what_the_app_signs_with_it() -> None:
    assert Options.of(secret="of all hosts").secrets == Options.of(secret=[b"of all hosts"]).secrets == SECRET
    assert b"of all hosts" not in SECRET[0]
    assert Options.of().secrets == Options.of(secret="").secrets == Options.of(secret=["", b""]).secrets == NONE


def text_of(origin: Origin, name: str, method: str, target: str, at_s: float, secrets: Secrets) -> str:
    """Of a request without a body."""
    return forwarded_text(origin, name, method, target, EMPTY_SHA256, at_s, secrets)


def proven_origin(text: str, method: str, target: str, now_s: float, secrets: Secrets) -> Origin | None:
    """None: it is not proven."""
    try:
        return proof_of(text, method, target, now_s, secrets).origin
    except Unproven:
        return None


# Tokens


@given(TOKENS, st.sampled_from([NONE, SECRET, BOTH]))
def test_a_token_comes_back_as_it_was(token: Token, secret: Secrets) -> None:
    text = token_text(token, NAME, secret)
    assert newest_token([text], NAME, secret) == newest_token([f" {text}\t"], NAME, secret) == token
    assert not set(text) - set("0123456789abcdef-."), "safe in a cookie and a header"


@given(TOKENS)
def test_a_token_of_other_hosts_is_none(token: Token) -> None:
    text = token_text(token, NAME, SECRET)
    assert newest_token([token_text(token, NAME, OTHER), str(token), f"{token}.", f".{text}"], NAME, SECRET) is None
    changed = Token.of(token.term ^ 1, token.txid)
    assert newest_token([text.replace(str(token), str(changed), 1)], NAME, SECRET) is None


@pytest.mark.parametrize("end", [-1, 0])
def test_a_token_with_its_mac_cut_or_lengthened_is_none(end: int) -> None:
    text = token_text(Token("3-1f4a"), NAME, SECRET)
    assert newest_token([text[:-1] if end else text + "0"], NAME, SECRET) is None
    assert newest_token([text.upper()], NAME, SECRET) is None


@given(st.lists(TOKENS, max_size=6), st.sampled_from([NONE, SECRET, BOTH]))
def test_the_newest_of_several_tokens_counts(tokens: list[Token], secret: Secrets) -> None:
    texts = [token_text(token, NAME, secret) for token in tokens]
    assert newest_token(["", *texts, "no token"], NAME, secret) == max(tokens, default=None)


@given(st.lists(ANY | ODD, max_size=6), st.sampled_from([NONE, SECRET, BOTH]))
def test_anything_may_come_as_a_token(texts: list[str], secret: Secrets) -> None:
    found = newest_token(texts, NAME, secret)
    assert found is None or not secret


@pytest.mark.parametrize("number", NO_INT)
@pytest.mark.parametrize("secret", [NONE, SECRET])
def test_what_only_python_takes_for_a_number_makes_no_token(number: str, secret: Secrets) -> None:
    assert newest_token([f"{number}-5", f"5-{number}", number], NAME, secret) is None


def test_no_more_than_a_few_texts_are_looked_at() -> None:
    good = token_text(Token("3-1f4a"), NAME, SECRET)
    assert newest_token([*["no token"] * 7, good], NAME, SECRET) == Token("3-1f4a")
    assert newest_token([*["no token"] * 1000, good], NAME, SECRET) is None


# Forwarded requests


@given(ORIGINS, st.sampled_from(["GET", "POST", "PROPFIND"]), LATIN1)
def test_an_edge_of_ours_is_believed(origin: Origin, method: str, target: str) -> None:
    text = text_of(origin, NAME, method, target, NOW_S, SECRET)
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert "," not in text, "or servers would see two headers where there is one"
    assert proven_origin(text, method, target, NOW_S, SECRET) == origin
    assert proven_origin(text_of(origin, NAME, method, target, NOW_S, OTHER), method, target, NOW_S, SECRET) is None


def sign(
    method: str = "POST",
    target: str = "/pay?to=1",
    at_s: float = NOW_S,
    secret: Secrets = SECRET,
    origin: Origin = ORIGIN,
) -> str:
    return text_of(origin, NAME, method, target, at_s, secret)


def proven(text: str) -> Origin | None:
    return proven_origin(text, "POST", "/pay?to=1", NOW_S, SECRET)


LIES: dict[str, str] = {
    "of another secret": sign(secret=OTHER),
    "of no secret": sign(secret=NONE),
    "for another path": sign(target="/pay"),
    "for another query": sign(target="/pay?to=2"),
    "for another method": sign(method="PUT"),
    "with method and target divided otherwise": sign(method="POST/", target="pay?to=1"),
    "too old": sign(at_s=NOW_S - FRESH_S - 2),
    "of the future": sign(at_s=NOW_S + FRESH_S + 2),
    "nothing": "",
    "a mac alone": ";mac=",
    "without its mac": sign().rpartition(";mac=")[0],
    "with a mac cut off": sign()[:-1],
    "with a mac too long": sign() + "0",
    "with a mac in capitals": sign().replace("mac=", "mac=A"),
    "twice": f"{sign()},{sign()}",
    "twice, apart": f"{sign()}, {sign()}",
    "with a second mac": f"{sign()};mac=00",
}


@pytest.mark.parametrize("text", LIES.values(), ids=LIES.keys())
def test_a_lie_proves_nothing(text: str) -> None:
    assert proven(text) is None


CHANGES: list[Callable[[str], str]] = [
    lambda text: text.replace("for=2001", "for=2002"),
    lambda text: text.replace("for=2001:db8::7", "for=127.0.0.1"),
    lambda text: text.replace("host=shop", "host=admin"),
    lambda text: text.replace("proto=https", "proto=http"),
    lambda text: text.replace("t=1", "t=2"),
    lambda text: text.replace("t=1700000000", "t=1700000001"),
    lambda text: text.replace("v=2", "v=3"),
    lambda text: text.replace(";n=", ";n=0"),
    lambda text: text.replace("body=e3", "body=e4"),
    lambda text: text.replace("for=", "FOR="),
    lambda text: f"for=127.0.0.1;{text}",
    lambda text: text.replace(";mac=", ";for=127.0.0.1;mac="),
    lambda text: text + " ",
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_on_the_way_proves_nothing(change: Callable[[str], str]) -> None:
    text = sign()
    assert proven(text) == ORIGIN
    assert change(text) != text
    assert proven(change(text)) is None


@pytest.mark.parametrize("off_s", [-FRESH_S + 2, 0, FRESH_S - 2])
def test_clocks_may_differ_a_little(off_s: float) -> None:
    assert proven(sign(at_s=NOW_S + off_s)) == ORIGIN


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (LIES["of no secret"], Flaw.UNSIGNED),
        (LIES["nothing"], Flaw.UNSIGNED),
        (LIES["of another secret"], Flaw.OTHER_SECRET),
        (LIES["for another path"], Flaw.OTHER_SECRET),
        (LIES["too old"], Flaw.TIME),
        (LIES["of the future"], Flaw.TIME),
    ],
)
def test_it_is_said_what_is_wrong(text: str, flaw: Flaw) -> None:
    with pytest.raises(Unproven) as caught:
        proof_of(text, "POST", "/pay?to=1", NOW_S, SECRET)
    assert caught.value.flaw == flaw


@pytest.mark.parametrize(("off_s", "said"), [(-45, "45 s ago"), (45, "45 s ahead")])
def test_a_difference_of_clocks_is_named(off_s: int, said: str) -> None:
    with pytest.raises(Unproven, match=said):
        proof_of(sign(at_s=NOW_S + off_s), "POST", "/pay?to=1", int(NOW_S), SECRET)


def signed(plain: str) -> str:
    """By who knows the secret."""
    whole = hmac.new(
        SECRET[0],
        b"".join(b"%d:%s," % (len(raw), raw) for raw in (b"forwarded", b"POST", b"/pay?to=1", plain.encode())),
        hashlib.sha256,
    ).hexdigest()
    return f"{plain};mac={whole[:32]}"


def test_what_a_walcast_before_this_one_signs_is_refused_with_what_to_do() -> None:
    """Its body could be another one, and it could be repeated."""
    with pytest.raises(Unproven) as caught:
        proof_of(signed("t=1700000000;db=app;for=::1;host=h;proto=https"), "POST", "/pay?to=1", NOW_S, SECRET)
    assert caught.value.flaw is Flaw.OLDER


def test_a_walcast_before_this_one_takes_what_this_one_signs() -> None:
    """So that edges can be upgraded first: there the fields are read by name, and all of the text is covered."""
    plain, _, mac = sign().rpartition(";mac=")
    assert signed(plain) == f"{plain};mac={mac}"
    facts = dict(part.partition("=")[::2] for part in plain.split(";"))
    assert (int(facts["t"]), unquote(facts["for"]), unquote(facts["host"])) == (int(NOW_S), *ORIGIN_TEXTS)


@pytest.mark.parametrize("version", ["1", "3", "22", "02"])
def test_of_another_version_nothing_is_taken(version: str) -> None:
    plain = sign().rpartition(";mac=")[0].replace(";v=2;", f";v={version};")
    with pytest.raises(Unproven) as caught:
        proof_of(signed(plain), "POST", "/pay?to=1", NOW_S, SECRET)
    assert caught.value.flaw is Flaw.UNKNOWN


def test_each_proof_has_a_nonce_of_its_own_and_ends_soon() -> None:
    proofs = [proof_of(sign(), "POST", "/pay?to=1", NOW_S, SECRET) for _ in range(50)]
    assert len({proof.nonce for proof in proofs}) == 50
    assert {proof.until_s for proof in proofs} == {int(NOW_S) + 31}
    assert {proof.body_sha256 for proof in proofs} == {EMPTY_SHA256}


@given(ANY | ODD, ANY, ANY, st.sampled_from([NONE, SECRET, BOTH]))
def test_anything_may_come_as_proof(text: str, method: str, target: str, secret: Secrets) -> None:
    assert proven_origin(text, method, target, NOW_S, secret) is None
    assert proven_origin(f"t={text};for=a;host=b;proto=http;mac={text}", method, target, NOW_S, secret) is None


@pytest.mark.parametrize("seconds", NO_INT)
def test_a_time_that_is_none_proves_nothing(seconds: str) -> None:
    assert proven(f"t={seconds};for=a;host=b;proto=http;mac={'0' * 32}") is None


def test_without_a_secret_nobody_is_believed() -> None:
    text = text_of(ORIGIN, NAME, "GET", "/", NOW_S, NONE)
    assert "mac" not in text
    assert proven_origin(text, "GET", "/", NOW_S, NONE) is None


NASTY = ["a;mac=0", "a;host=b", "10.0.0.1,127.0.0.1", "a b", "a%3Bb", "ü", "=;=;", "\r\nX: y", ""]


@pytest.mark.parametrize("client", NASTY)
@pytest.mark.parametrize("host", NASTY)
def test_what_a_client_calls_itself_stays_in_its_field(client: str, host: str) -> None:
    origin = Origin(client, host, "http")
    text = text_of(origin, NAME, "GET", "/", NOW_S, SECRET)
    assert text.count(";") == 8
    assert proven_origin(text, "GET", "/", NOW_S, SECRET) == origin


# Keys of tokens


def test_without_a_secret_tokens_are_signed_with_the_databases_id() -> None:
    one, other = token_keys((), "1" * 32), token_keys((), "2" * 32)
    text = token_text(Token("3-1f4a"), NAME, one)
    assert newest_token([text], NAME, one) == Token("3-1f4a")
    assert newest_token([text], NAME, other) is None
    assert newest_token(["3-1f4a"], NAME, one) is None
    assert newest_token([text], NAME, NONE) == Token("3-1f4a"), "hosts of a walcast before this one take it"
    assert token_keys(SECRET, "1" * 32) == SECRET
    assert token_keys((), "") == NONE
    assert b"1" * 32 not in one[0]


# Several databases, several secrets


@given(st.text(), st.text(), TOKENS)
def test_a_token_is_of_one_database(name: str, other: str, token: Token) -> None:
    found = newest_token([token_text(token, name, SECRET)], other, SECRET)
    assert found == (token if name == other else None)


@pytest.mark.parametrize("name", ["app", "", "a;b=c", "naïve 日本", "a,b", "mac=0;mac=1"])
@pytest.mark.parametrize("secrets", [NONE, SECRET])
def test_a_host_is_told_which_database_is_meant(name: str, secrets: Secrets) -> None:
    text = text_of(ORIGIN, name, "GET", "/", NOW_S, secrets)
    assert forwarded_name(text) == name
    assert proven_origin(text, "GET", "/", NOW_S, secrets) == (ORIGIN if secrets else None)


@given(ANY | ODD)
def test_anything_may_come_where_a_name_belongs(text: str) -> None:
    assert isinstance(forwarded_name(text), str)


def test_a_secret_can_be_changed_on_one_host_after_the_other() -> None:
    """The first one signs, all are believed."""
    token, changing = Token("3-1f4a"), (*OTHER, *SECRET)
    assert changing == BOTH
    for signing, believing, believed in [
        (SECRET, BOTH, True),
        (BOTH, BOTH, True),
        (BOTH, SECRET, False),
        (BOTH, OTHER, True),
        (OTHER, SECRET, False),
    ]:
        found = newest_token([token_text(token, NAME, signing)], NAME, believing)
        text = text_of(ORIGIN, NAME, "GET", "/", NOW_S, signing)
        origin = proven_origin(text, "GET", "/", NOW_S, believing)
        assert (found, origin) == ((token, ORIGIN) if believed else (None, None))


def test_a_token_and_a_proof_cannot_stand_for_each_other() -> None:
    """Both are macs of one secret: of different things."""
    text = text_of(ORIGIN, NAME, "GET", "/", NOW_S, SECRET)
    plain, _, mac = text.rpartition(";mac=")
    assert newest_token([f"{plain}.{mac[:16]}"], NAME, SECRET) is None
    assert not mac.startswith(token_text(Token("3-1"), NAME, SECRET).partition(".")[2])
