"""Where a request is answered: a table of cases, and what holds of every request beside every replica."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from walcast.errors import ConfigError
from walcast.position import Position
from walcast.statusfile import State, Status
from walcast.token import Token
from walcast.web.options import Options
from walcast.web.routing import Asked, Forward, Local, Refuse, Route, Wait, heard_of, lag_of, route

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
HOME = "https://home:8000"
ELSEWHERE = "https://elsewhere:8000"
PLAIN = "http://10.0.0.1:8000"

READ = Asked(writes=False, private=False, forwarded=False, upgrade=False, token=None)
WRITE = replace(READ, writes=True)
HERE = Status(State.STREAMING, 2, Position(100, 1), 100, lag_us=1000, level_ns=NOW_NS, written_ns=NOW_NS, app_url=HOME)
PRIMARY = replace(HERE, state=State.PRIMARY)
NAMED = replace(PRIMARY, name="app")


def beside(state: State, **facts: Any) -> Status:
    return replace(HERE, state=state, **facts)


def carrying(asked: Asked, token: str) -> Asked:
    return replace(asked, token=Token(token))


LONG_AGO = {"written_ns": NOW_NS - 6 * SECOND_NS}
SAY_SO = {"max_lag_s": 2, "on_lag": "stale"}
BEHIND = {"primary_txid": 200, "level_ns": NOW_NS - 3 * SECOND_NS}

CASES: list[tuple[str, Asked, Status | None, dict[str, Any], Route]] = [
    # At the primary
    ("a read at the primary", READ, PRIMARY, {}, Local(primary=True)),
    ("a write at the primary", WRITE, PRIMARY, {}, Local(primary=True)),
    ("its own token, newer than it said", carrying(READ, "2-ff"), PRIMARY, {}, Local(primary=True)),
    ("a token of a term before", carrying(WRITE, "1-ff"), PRIMARY, {}, Local(primary=True)),
    ("a read with a token of a later term", carrying(READ, "3-1"), PRIMARY, {}, Wait(Token("3-1"))),
    ("a WebSocket", replace(READ, upgrade=True), PRIMARY, {}, Local(primary=True)),
    ("what an edge sent on", replace(WRITE, forwarded=True), PRIMARY, {}, Local(primary=True)),
    # At a replica
    ("a read", READ, HERE, {}, Local()),
    ("a read of what is here", carrying(READ, "2-64"), HERE, {}, Local()),
    ("a read of an older term", carrying(READ, "1-ffff"), HERE, {}, Local()),
    ("a read of what is not here yet", carrying(READ, "2-65"), HERE, {}, Wait(Token("2-65"))),
    ("while it catches up", carrying(READ, "2-65"), beside(State.CATCHING_UP), {}, Wait(Token("2-65"))),
    ("while it is cut off", carrying(READ, "2-65"), beside(State.DISCONNECTED), {}, Forward(HOME)),
    ("while it is stopped", carrying(READ, "2-65"), beside(State.STOPPED), {}, Forward(HOME)),
    ("while it hangs", carrying(READ, "2-65"), beside(State.STREAMING, **LONG_AGO), {}, Forward(HOME)),
    ("a read while it is cut off", READ, beside(State.DISCONNECTED), {}, Local()),
    ("a read while it has nothing", READ, beside(State.BOOTSTRAPPING), {}, Forward(HOME)),
    ("a write", WRITE, HERE, {}, Forward(HOME)),
    ("a write while it is cut off", WRITE, beside(State.DISCONNECTED), {}, Forward(HOME)),
    ("a write, told where to", WRITE, HERE, {"primary_url": ELSEWHERE}, Forward(ELSEWHERE)),
    ("a write, with nobody to tell where", WRITE, replace(HERE, app_url=""), {}, Forward("")),
    ("a WebSocket at a replica", replace(READ, upgrade=True), HERE, {}, Refuse(501, "protocol", None)),
    ("one that writes", replace(WRITE, upgrade=True), HERE, {}, Refuse(501, "protocol", None)),
    # Without any
    ("a read without a replica", READ, None, {"primary_url": ELSEWHERE}, Forward(ELSEWHERE)),
    ("a read with nothing known", READ, None, {}, Forward("")),
    ("a write in development", WRITE, None, {"standalone": True}, Local(primary=True, alone=True)),
    # Of a host that was the primary the last known place of the primary's app is its own
    ("a write at a fenced one", WRITE, beside(State.FENCED), {}, Forward("")),
    ("a write at one that hangs", WRITE, beside(State.PRIMARY, **LONG_AGO), {}, Forward("")),
    ("a write at one that stopped", WRITE, beside(State.STOPPED, was=State.PRIMARY), {}, Forward("")),
    ("where a follower stopped", WRITE, beside(State.STOPPED, was=State.STREAMING), {}, Forward(HOME)),
    ("all hosts may be told the same", WRITE, beside(State.FENCED), {"primary_url": HOME}, Forward("")),
    # Private
    ("a private path", replace(WRITE, private=True), HERE, {}, Local()),
    ("a private path that was sent on", replace(READ, private=True, forwarded=True), PRIMARY, {}, Refuse(404, "here")),
    # Sent on to the wrong one
    ("sent on to a replica", replace(WRITE, forwarded=True), HERE, {}, Refuse(503, "not the primary", 1)),
    ("a read sent on", replace(READ, forwarded=True), HERE, {}, Refuse(503, "not the primary", 1)),
    ("sent on to a fenced one", replace(WRITE, forwarded=True), beside(State.FENCED), {}, Refuse(503, "", 1)),
    # Sent on to another app
    ("for another database", replace(WRITE, forwarded=True, database="b"), NAMED, {}, Refuse(421, "--app-url")),
    ("for this one", replace(WRITE, forwarded=True, database="app"), NAMED, {}, Local(primary=True)),
    ("without a name", replace(WRITE, forwarded=True), NAMED, {}, Local(primary=True)),
    # Not proven
    ("not proven", replace(WRITE, forwarded=True, unproven="old"), PRIMARY, {}, Refuse(403, "old")),
    ("a read", replace(READ, forwarded=True, unproven="old"), PRIMARY, {}, Refuse(403, "Nothing was done")),
    ("at a replica", replace(WRITE, forwarded=True, unproven="old"), HERE, {}, Refuse(503, "not the primary", 1)),
    ("in development", replace(WRITE, forwarded=True, unproven="old"), None, {"standalone": True}, Refuse(403, "old")),
    # Where the primary's app may not be
    ("plain http elsewhere", WRITE, replace(HERE, app_url=PLAIN), {}, Forward("")),
    ("as was asked for", WRITE, replace(HERE, app_url=PLAIN), {"insecure_app_url": True}, Forward(PLAIN)),
    ("plain http here", WRITE, replace(HERE, app_url="http://[::1]:8000"), {}, Forward("http://[::1]:8000")),
    ("a metadata service", WRITE, replace(HERE, app_url="https://169.254.169.254"), {}, Forward("")),
    ("one that is allowed", WRITE, HERE, {"allowed_app_urls": ["*.b", "home"]}, Forward(HOME)),
    ("one that is not", WRITE, HERE, {"allowed_app_urls": ["*.b", "https://home"]}, Forward("")),
    ("one that the node refused", WRITE, replace(HERE, app_url="", app_url_refused="x"), {}, Forward("")),
    # How far behind
    ("not too far", READ, beside(State.STREAMING, **BEHIND), {"max_lag_s": 3.5}, Local()),
    ("too far", READ, beside(State.STREAMING, **BEHIND), {"max_lag_s": 2.5}, Forward(HOME)),
    ("too far, and it says so", READ, beside(State.STREAMING, **BEHIND), SAY_SO, Local(stale_s=3.0)),
    ("never level", READ, beside(State.CATCHING_UP, level_ns=0), {"max_lag_s": 9}, Forward(HOME)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "status", "told", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_request_goes_where_it_belongs(
    asked: Asked, status: Status | None, told: dict[str, Any], expected: Route
) -> None:
    found = route(asked, status, NOW_NS, Options.of(**told))
    if isinstance(expected, Refuse):
        assert isinstance(found, Refuse)
        assert (found.status, found.retry_s) == (expected.status, expected.retry_s)
        assert expected.why in found.why
    else:
        assert found == expected


WAITED = [
    ("to the primary", HERE, {}, Forward(HOME)),
    ("or not at all", HERE, {"on_stale": "unavailable"}, Refuse(503, "your last change", 1)),
    ("at the primary of a term before", PRIMARY, {}, Refuse(503, "your last change", 1)),
]


@pytest.mark.parametrize(("status", "told", "expected"), [case[1:] for case in WAITED], ids=[c[0] for c in WAITED])
def test_who_has_waited_goes_on(status: Status, told: dict[str, Any], expected: Route) -> None:
    found = route(carrying(READ, "3-65"), status, NOW_NS, Options.of(**told), waited=True)
    if isinstance(expected, Refuse):
        assert isinstance(found, Refuse)
        assert (found.status, found.retry_s) == (expected.status, expected.retry_s)
    else:
        assert found == expected


def test_it_is_known_why_nobody_knows_where_the_primarys_app_is() -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"app_url": PLAIN}, True),
        ({"app_url": "", "app_url_refused": "not allowed"}, True),
        ({"app_url": ""}, True),
        ({"app_url": "", "state": State.DISCONNECTED}, False),  # there may be no primary
        ({}, False),
    ]
    for facts, known in cases:
        found = route(WRITE, replace(HERE, **facts), NOW_NS, Options.of())
        assert isinstance(found, Forward)
        assert bool(found.why) == known


@pytest.mark.parametrize(
    "told",
    [
        {"primary_url": PLAIN},
        {"primary_url": "https://169.254.169.254", "insecure_app_url": True},
        {"primary_url": HOME, "allowed_app_urls": ["https://other"]},
        {"allowed_app_urls": HOME},
        {"allowed_app_urls": []},
        {"allowed_app_urls": [5]},
        {"allowed_app_urls": ["ftp://x"]},
        {"allowed_app_urls": [PLAIN]},
        {"insecure_app_url": "yes"},
        {"max_spooled": -1},
    ],
)
def test_options_that_cannot_be_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Options.of(**told)


@pytest.mark.parametrize(
    ("token", "heard"), [("2-64", True), ("2-c8", True), ("2-c9", False), ("1-ffff", True), ("3-1", False)]
)
def test_a_token_that_nothing_proves_is_one_that_the_primary_could_have_given(token: str, heard: bool) -> None:
    assert heard_of(beside(State.STREAMING, primary_txid=200), Token(token)) == heard
    assert not heard_of(None, Token(token))


# Whatever is asked, beside whatever

FEW = st.integers(0, 4)
TOKENS = st.builds(Token.of, FEW, FEW)
ASKED = st.builds(
    Asked, writes=st.booleans(), private=st.booleans(), forwarded=st.booleans(), upgrade=st.booleans(),
    token=st.none() | TOKENS, database=st.sampled_from(["", "app", "b"]),
)  # fmt: skip
TIMES = st.sampled_from([0, *(NOW_NS + seconds * SECOND_NS for seconds in (-3600, -4, 0, 1, 3600))])
STATUSES = st.builds(
    Status, st.sampled_from(State), FEW, st.builds(Position, FEW, st.just(1)), FEW, st.integers(0, 9_000_000),
    TIMES, TIMES, app_url=st.sampled_from(["", HOME]), name=st.sampled_from(["", "app"]),
    was=st.none() | st.sampled_from(State),
)  # fmt: skip
TOLD = st.fixed_dictionaries(
    {
        "primary_url": st.sampled_from([None, ELSEWHERE]),
        "on_stale": st.sampled_from(["primary", "unavailable"]),
        "max_lag_s": st.sampled_from([None, 0, 2, 8.5]),
        "on_lag": st.sampled_from(["primary", "stale"]),
        "standalone": st.booleans(),
    }
).map(lambda told: Options.of(**told))


def shows(status: Status, token: Token) -> bool:
    """Said again, dumbly: does a reader beside this status see what the token covers?"""
    if is_primary(status):
        return token.term <= status.term
    return status.term > token.term or (status.term == token.term and status.position.txid >= token.txid)


def is_primary(status: Status) -> bool:
    return status.state is State.PRIMARY and -2 * SECOND_NS < NOW_NS - status.written_ns < 5 * SECOND_NS


@settings(max_examples=300)
@given(ASKED, st.none() | STATUSES, TOLD, st.booleans())
@example(carrying(WRITE, "3-1"), PRIMARY, Options.of(), False)
@example(WRITE, beside(State.PRIMARY, **LONG_AGO), Options.of(), False)
def test_a_write_is_answered_at_the_primary_and_a_read_never_from_before_its_token(
    asked: Asked, status: Status | None, options: Options, waited: bool
) -> None:
    found = route(asked, status, NOW_NS, options, waited=waited)
    assert isinstance(found, get_args(Route))
    if isinstance(found, Local) and not asked.private and not (status is None and options.standalone):
        assert status is not None
        assert found.primary == is_primary(status)
        assert found.primary or not (asked.writes or asked.forwarded or asked.upgrade)
        assert asked.token is None or shows(status, asked.token)
        if not found.primary:
            assert status.state is not State.BOOTSTRAPPING
            lag_s = lag_of(status, NOW_NS)
            too_old = options.max_lag_s is not None and lag_s > options.max_lag_s
            assert found.stale_s == (lag_s if too_old else None)
            assert not (too_old and options.on_lag == "primary")
    if isinstance(found, Forward):
        assert not asked.forwarded
        assert not asked.private
        assert not asked.upgrade
        assert found.url in ("", ELSEWHERE, HOME)
        assert status is None or not is_primary(status)
        assert found.url == "" or status is None or not status.is_own
    if isinstance(found, Wait):
        assert not waited
        assert not asked.writes
        assert not asked.forwarded
        assert found.token == asked.token
        assert status is not None
        assert status.state in (State.STREAMING, State.CATCHING_UP, State.PRIMARY)
        assert -2 * SECOND_NS < NOW_NS - status.written_ns < 5 * SECOND_NS
    if isinstance(found, Refuse):
        assert found.status in (404, 421, 501, 503)
        assert (found.retry_s is not None) == (found.status == 503)
    if asked.private:
        assert found == Local() or (asked.forwarded and isinstance(found, Refuse) and found.status == 404)


@given(STATUSES)
def test_the_lag_is_a_number_that_is_not_negative(status: Status) -> None:
    lag_s = lag_of(status, NOW_NS)
    assert lag_s >= 0
    assert lag_s == math.inf if status.level_ns in (0, NOW_NS + 3600 * SECOND_NS) else lag_s < math.inf
