"""Reads that carry a token, and replicas that are behind: who waits, for how long, how many at once, and where they go
then. Under threads, greenlets and an event loop; the status files say what each test wants."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from support.nodes import poll
from support.web_place import HOUR_NS, Place, place
from support.web_scripted import Scripted, scripted
from support.web_servers import PATIENCE_S, Answer, Server, served

from walcast.identity import make_database_id, write_database_id
from walcast.position import Position
from walcast.statedir import state_dir
from walcast.statusfile import State
from walcast.token import Token
from walcast.web.options import Options
from walcast.web.proof import token_keys, token_text

SECRET = "of all hosts"
LONG_S = 20.0
WAIT_S = 0.1
HOLD_S = 0.5
AT_ONCE_S = 5.0  # with room for a machine that is busy, and none for who waits
ID = make_database_id()


def ours(token: str) -> str:
    """As the primary's app gives it where it has no secret."""
    return token_text(Token(token), "", token_keys((), ID))


HERE, NEXT, NEVER = ours("2-64"), ours("2-65"), ours("2-ffffffff")


@dataclass
class Places:
    primary: Scripted
    edge: Place
    alone: Place


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    folder = tmp_path_factory.mktemp("web")
    with ExitStack() as stack:
        enter = stack.enter_context
        made = Places(enter(scripted()), enter(place(folder / "edge")), enter(place(folder / "alone")))
        write_database_id(state_dir(made.edge.database), ID)
        yield made


@pytest.fixture(scope="module", params=["gthread", "uvicorn", pytest.param("gevent", marks=pytest.mark.slow)])
def server(
    request: pytest.FixtureRequest, places: Places, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Its sites: `long` waits long, `short` does not, `signed` has a secret, `crowd` lets two wait, `refuses` answers
    503, `near` sends on what is old and `old` says so; `held` and `alone` know no primary."""
    there = {"primary_url": places.primary.url, "read_wait_s": LONG_S, "answer_s": 20, "primary_wait_s": HOLD_S}
    edge, alone = str(places.edge.database), str(places.alone.database)
    sites: dict[str, dict[str, Any]] = {
        "long": {"database": edge, "options": there},
        "short": {"database": edge, "options": there | {"read_wait_s": WAIT_S}},
        "signed": {"database": edge, "options": there | {"secret": SECRET}},
        "crowd": {"database": edge, "options": there | {"max_waiting": 2}},
        "refuses": {"database": edge, "options": there | {"read_wait_s": WAIT_S, "on_stale": "unavailable"}},
        "near": {"database": edge, "options": there | {"max_lag_s": 2}},
        "old": {"database": edge, "options": there | {"max_lag_s": 2, "on_lag": "stale"}},
        "held": {"database": alone, "options": {"primary_wait_s": LONG_S, "max_waiting": 1}},
        "alone": {"database": alone, "options": {"primary_wait_s": WAIT_S}},
    }
    with served(request.param, sites, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture(autouse=True)
def primary(places: Places) -> Iterator[Scripted]:
    places.primary.reset()
    places.edge.show()
    places.alone.show()
    yield places.primary
    assert not places.primary.errors


@pytest.fixture
def edge(places: Places) -> Place:
    return places.edge


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def read(server: Server, host: str, token: str, path: str = "/x") -> Answer:
    return server.get(path, host=host, Cookie=f"a=b; walcast={token}; c=d")


def is_local(answer: Answer) -> bool:
    assert answer.status == 200, answer
    return "region" in answer.facts


def test_what_is_here_is_answered_at_once(server: Server, primary: Scripted) -> None:
    for token in (HERE, ours("2-1"), ours("1-ffff")):
        assert is_local(read(server, "long", token))
        assert is_local(server.get(host="long", Walcast_Token=token))
    assert primary.seen == []


@pytest.mark.parametrize("sent", ["cookie", "header"])
def test_a_read_waits_for_its_token(
    server: Server, primary: Scripted, edge: Place, threads: ThreadPoolExecutor, sent: str
) -> None:
    name, value = ("Cookie", f"walcast={NEXT}") if sent == "cookie" else ("Walcast-Token", NEXT)
    asked = [threads.submit(server.ask, "GET", "/x", {name: value}, host="long") for _ in range(4)]
    edge.show(txid=0x65)
    assert all(is_local(future.result(PATIENCE_S)) for future in asked)
    assert primary.seen == []


def test_the_newest_of_several_tokens_is_waited_for(server: Server, primary: Scripted) -> None:
    for cookie in (f"walcast={NEVER}; walcast={HERE}", f"walcast={HERE}; walcast={NEVER}"):
        assert is_local(server.get(host="long", Cookie=cookie.replace(NEVER, ours("1-1"))))
        assert not is_local(server.get(host="short", Cookie=cookie))
    assert not is_local(server.get(host="short", Cookie=f"walcast={HERE}", Walcast_Token=NEVER))


def test_nobody_waits_longer_than_the_bound(server: Server, primary: Scripted) -> None:
    """Whatever token he makes up."""
    began_s = time.monotonic()
    assert not is_local(read(server, "short", NEVER))
    assert WAIT_S < time.monotonic() - began_s < WAIT_S + AT_ONCE_S
    assert primary.one["cookie"] == f"a=b; walcast={NEVER}; c=d"


def test_or_is_told_to_come_again(server: Server, primary: Scripted) -> None:
    answer = read(server, "refuses", NEVER)
    assert (answer.status, answer["retry-after"], answer["cache-control"]) == (503, "1", "no-store")
    assert primary.seen == []


def test_a_made_up_token_is_none_where_there_is_a_secret(server: Server, primary: Scripted) -> None:
    plain = "2-ffffffff"
    theirs = token_text(Token(plain), "", Options.of(secret="of somebody else").secrets)
    began_s = time.monotonic()
    for token in (NEVER, plain, theirs, f"{plain}.", f"{plain}.{'0' * 16}", "no token", "", "\xff\xfe", "9" * 4000):
        assert is_local(read(server, "signed", token))
    assert time.monotonic() - began_s < AT_ONCE_S
    assert primary.seen == []


MADE_UP = ["2-65", "2-ffffffff", "3-1", "ffffffff-ffffffffffffffff"]


@pytest.mark.parametrize("on_stale", ["long", "refuses"])
def test_without_a_secret_a_made_up_token_costs_nothing(
    server: Server, primary: Scripted, edge: Place, on_stale: str
) -> None:
    """It is signed by nobody who knows the database's id, also where it could be one of the primary's."""
    edge.show(primary_txid=0xFFFFFFFF)
    other = token_text(Token("2-65"), "", token_keys((), make_database_id()))
    named = token_text(Token("2-65"), "other", token_keys((), ID))
    began_s = time.monotonic()
    for token in [*MADE_UP, other, named, f"2-65.{'0' * 16}", *(f"{made_up}.{HERE[5:]}" for made_up in MADE_UP)]:
        assert is_local(read(server, on_stale, token))
        assert is_local(server.get(host=on_stale, Walcast_Token=token))
    assert time.monotonic() - began_s < AT_ONCE_S
    assert primary.seen == []


def test_nor_does_it_where_the_database_has_no_id(server: Server, places: Places) -> None:
    """As beside a node of an older walcast: what the primary was never heard to have is not waited for."""
    places.alone.show(primary_txid=0x65)
    began_s = time.monotonic()
    for token in ["2-66", *MADE_UP[1:]]:
        assert is_local(read(server, "alone", token))
    assert time.monotonic() - began_s < AT_ONCE_S
    assert read(server, "alone", "2-65").status == 503, "which the primary has, and this host has not"


def test_a_signed_one_is_waited_for(server: Server, edge: Place, threads: ThreadPoolExecutor) -> None:
    token = token_text(Token("2-65"), "", Options.of(secret=SECRET).secrets)
    asked = threads.submit(read, server, "signed", token)
    edge.show(txid=0x65)
    assert is_local(asked.result(PATIENCE_S))


def test_no_more_wait_than_may(server: Server, primary: Scripted, edge: Place, threads: ThreadPoolExecutor) -> None:
    """Of three the third goes on as if it had waited; who asks for no token is not concerned."""
    asked = {threads.submit(read, server, "crowd", NEXT) for _ in range(3)}
    done, waiting = wait(asked, LONG_S / 2, FIRST_COMPLETED)
    assert [is_local(future.result()) for future in done] == [False]
    assert is_local(server.get(host="crowd"))
    assert is_local(read(server, "crowd", HERE))
    assert not is_local(read(server, "crowd", NEXT))
    assert not any(future.done() for future in waiting)
    edge.show(txid=0x65)
    assert [is_local(future.result(PATIENCE_S)) for future in waiting] == [True, True]
    assert len(primary.seen) == 2


NOT_APPLYING: dict[str, dict[str, Any]] = {
    "cut off": {"state": State.DISCONNECTED},
    "diverged": {"state": State.DIVERGED},
    "stopped": {"state": State.STOPPED},
    "bootstrapping": {"state": State.BOOTSTRAPPING},
    "hung": {"written_ns": 1},
}


@pytest.mark.parametrize("facts", NOT_APPLYING.values(), ids=NOT_APPLYING.keys())
def test_nobody_waits_for_a_replica_that_does_not_apply(
    server: Server, primary: Scripted, edge: Place, facts: dict[str, Any]
) -> None:
    edge.show(**facts)
    began_s = time.monotonic()
    assert not is_local(read(server, "long", NEVER))
    assert time.monotonic() - began_s < AT_ONCE_S
    assert len(primary.seen) == 1


@pytest.mark.parametrize("facts", [NOT_APPLYING["cut off"], NOT_APPLYING["stopped"], NOT_APPLYING["hung"]])
def test_what_it_has_it_still_shows(server: Server, primary: Scripted, edge: Place, facts: dict[str, Any]) -> None:
    edge.show(**facts)
    assert is_local(read(server, "long", HERE))
    assert is_local(server.get(host="long"))
    assert primary.seen == []


def test_a_token_of_no_term_yet_is_not_asked_for_without_end(server: Server, primary: Scripted) -> None:
    """The primary does not know of it, either."""
    began_s = time.monotonic()
    answer = read(server, "short", ours("ffffffff-1"), "/never-primary")
    assert (answer.status, answer["retry-after"]) == (503, "1")
    assert time.monotonic() - began_s < WAIT_S + HOLD_S + AT_ONCE_S
    assert 1 < len(primary.seen) < 7


# Behind


def test_a_read_goes_to_the_primary_when_the_replica_is_far_behind(
    server: Server, primary: Scripted, edge: Place
) -> None:
    assert is_local(server.get(host="near"))
    edge.show(primary_txid=200, level_ns=time.time_ns() - HOUR_NS)
    assert poll(lambda: not is_local(server.get(host="near")), PATIENCE_S)
    edge.show(lag_us=1_900_000)
    assert poll(lambda: is_local(server.get(host="near")), PATIENCE_S)
    edge.show(state=State.DISCONNECTED, level_ns=time.time_ns() - HOUR_NS)
    assert poll(lambda: not is_local(server.get(host="near")), PATIENCE_S)


def test_or_its_answer_says_how_old_it_is(server: Server, primary: Scripted, edge: Place) -> None:
    assert server.get(host="old")["walcast-stale"] == ""
    edge.show(lag_us=3_210_000)
    assert poll(lambda: server.get(host="old")["walcast-stale"] == "3.2", PATIENCE_S)
    edge.show(state=State.CATCHING_UP, level_ns=0)
    assert poll(lambda: server.get(host="old")["walcast-stale"] == "unknown", PATIENCE_S)
    edge.show(state=State.DISCONNECTED, level_ns=time.time_ns() - HOUR_NS)
    assert poll(lambda: server.get(host="old")["walcast-stale"].startswith("36"), PATIENCE_S)
    assert is_local(read(server, "old", HERE)), "what its token covers it has"
    assert primary.seen == []


def test_a_replica_that_is_behind_is_waited_for_all_the_same(
    server: Server, primary: Scripted, edge: Place, threads: ThreadPoolExecutor
) -> None:
    edge.show(lag_us=3_210_000)
    asked = threads.submit(read, server, "old", NEXT)
    edge.show(txid=0x65, lag_us=4_000_000)
    assert asked.result(PATIENCE_S)["walcast-stale"] == "4.0"


# Without a primary


def test_no_more_writes_are_held_than_may_be(server: Server, places: Places, threads: ThreadPoolExecutor) -> None:
    asked = {threads.submit(server.post, "/ok", b"x", host="held") for _ in range(2)}
    done, held = wait(asked, LONG_S / 2, FIRST_COMPLETED)
    assert [future.result().status for future in done] == [503]
    assert is_local(server.get(host="held"))
    places.alone.show(app_url=places.primary.url)
    assert [future.result(PATIENCE_S).status for future in held] == [200]
    assert len(places.primary.seen) == 1


@pytest.mark.parametrize(
    "facts", [{"state": State.FENCED}, {"state": State.PRIMARY, "written_ns": 1}], ids=["fenced", "hung"]
)
def test_a_host_that_was_the_primary_does_not_ask_itself(server: Server, places: Places, facts: dict[str, Any]) -> None:
    """Its own app is all that it knows of: every worker would wait for another one."""
    places.alone.show(app_url=places.primary.url, **facts)
    assert server.post("/ok", host="alone").status == 503
    assert places.primary.seen == []


@pytest.mark.parametrize("state", [State.STREAMING, State.DISCONNECTED, State.STOPPED])
def test_reads_go_on_without_one(server: Server, places: Places, state: State) -> None:
    places.alone.show(state=state)
    assert is_local(server.get(host="alone"))
    answer = read(server, "alone", HERE)
    assert is_local(answer)


def test_a_position_is_read_as_the_status_says(server: Server, places: Places) -> None:
    """A term counts before a TXID."""
    places.alone.show(term=3, position=Position(5, 1))
    assert is_local(read(server, "alone", ours("2-ffff")))
    assert is_local(read(server, "alone", ours("3-5")))
    assert not is_local(read(server, "short", ours("3-5")))
