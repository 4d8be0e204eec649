"""What comes from outside to the middleware, mutated at random: addresses of apps, status files, tokens, proofs.
Nothing of it crashes, and nothing is taken that should not be. A short run by default, a million inputs of each as
`slow`."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from walcast.appurl import AppUrlPolicy, parse_app_url
from walcast.position import Position
from walcast.statusfile import State, Status
from walcast.token import Token
from walcast.web.options import Options
from walcast.web.proof import Origin, Unproven, forwarded_text, newest_token, proof_of, token_keys, token_text
from walcast.web.spool import EMPTY_SHA256

SHORT, LONG = 2_000, 1_000_000
NOW_S = 1_700_000_000.0
SECRETS = Options.of(secret="of all hosts").secrets
KEYS = token_keys((), "1" * 32)
POLICY = AppUrlPolicy.of(["https://*.example.com/shop", "10.0.0.1"])
PARTS = [
    b"http", b"https", b"://", b":", b"/", b"//", b"..", b"%2e", b"%2f", b"\\", b"@", b"?", b"#", b"[", b"]", b"::1",
    b"169.254.169.254", b"0xa9fea9fe", b"localhost", b"10.0.0.1", b".example.com", b"*.", b"shop", b"\0", b"\r\n",
    b"\xff", b";", b"=", b"mac=", b"t=", b"v=2", b"n=", b"body=", b"for=", b"-", b"0", b"f", b"65536", b" ",
]  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes of it, or pieces, otherwise."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(4)
        if kind == 0 and found:
            found[at % len(found)] = rng.randrange(256)
        elif kind == 1:
            found[at:at] = rng.choice(PARTS)
        elif kind == 2:
            del found[at : at + rng.randrange(9)]
        else:
            found[at : at + rng.randrange(9)] = rng.choice(PARTS)
    return bytes(found)


def app_url(rng: random.Random) -> None:
    good = rng.choice([b"https://a.example.com:8443/shop/x", b"https://10.0.0.1", b"http://127.0.0.1:8000/x", b""])
    text = mutated(rng, good).decode("utf-8", "replace")
    why = POLICY.refusal(text)
    assert why.isprintable()
    if why:
        return
    found, read = parse_app_url(text), urlsplit(text)
    assert read.hostname == found.host
    assert read.username is None
    assert found.host == "10.0.0.1" or (found.host.endswith(".example.com") and (found.path + "/").startswith("/shop/"))


def status_file(rng: random.Random) -> None:
    good = Status(
        State.STREAMING, 3, Position(5, 6), name="app", primary="h:1", app_url="https://a.example.com"
    ).encode()
    body = mutated(rng, good[4 : 4 + rng.randint(8, 300)])
    body = (body + good[4 + len(body) :])[:1020].ljust(1020, b"\0")
    status = Status.decode(zlib.crc32(body).to_bytes(4, "little") + body)
    if status is None:
        return
    assert isinstance(status.state, State)
    assert not status.app_url or parse_app_url(status.app_url)
    status.lag_ms(rng.getrandbits(62))
    status.is_live(rng.getrandbits(62))


def token(rng: random.Random) -> None:
    good = token_text(Token.of(rng.getrandbits(32), rng.getrandbits(64)), "app", KEYS)
    text = mutated(rng, good.encode()).decode("latin-1")
    found = newest_token([text], "app", KEYS)
    assert found is None or text.strip() == good


def proof(rng: random.Random) -> None:
    origin = Origin("203.0.113.9", "shop.example", "https")
    good = forwarded_text(origin, "app", "POST", "/pay", EMPTY_SHA256, NOW_S, SECRETS)
    text = mutated(rng, good.encode()).decode("latin-1")
    try:
        found = proof_of(text, "POST", "/pay", NOW_S, SECRETS)
    except Unproven:
        return
    assert text == good
    assert found.origin == origin


TARGETS = [app_url, status_file, token, proof]


def run(target: Callable[[random.Random], None], count: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(count):
        target(rng)


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes_is_judged(target: Callable[[random.Random], None]) -> None:
    run(target, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_also_a_million_of_it(target: Callable[[random.Random], None]) -> None:
    run(target, LONG)
