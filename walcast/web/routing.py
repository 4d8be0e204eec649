"""Where a request is answered. Pure: what is known of the request and of the replica → what to do.

The invariant: a request that writes is answered by the app at the primary or not at all, and a read that carries a
token of ours is never answered from a state before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from walcast.statusfile import State, Status
from walcast.token import Token
from walcast.web import answers
from walcast.web.beside import Beside
from walcast.web.options import PRIMARY, Options

APPLYING = (State.STREAMING, State.CATCHING_UP)
NOTHING_HERE = (State.BOOTSTRAPPING,)
UNPROVEN_STATUS = 403
NOT_PRIMARY_STATUS = 503  # with it a host says to an edge that it did nothing, and that another one may be the primary


@dataclass(frozen=True, slots=True)
class Asked:
    """What matters of a request. `forwarded`: an edge sent it on; it must not go on from here; `database`: for the app
    of which one, "" when it does not say. `upgrade`: it asks for another protocol, as WebSockets do. `unproven`: why it
    is not taken for one that an edge sent on, although it says so."""

    writes: bool
    private: bool
    forwarded: bool
    upgrade: bool
    token: Token | None
    database: str = ""
    unproven: str = ""


@dataclass(frozen=True, slots=True)
class Local:
    """By the app of this host; `stale_s`: to be said, when it is more than allowed. `primary`: as the primary;
    `alone`: without a node, so that there are no tokens."""

    primary: bool = False
    alone: bool = False
    stale_s: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Until the replica has `token`; then ask again."""

    token: Token


@dataclass(frozen=True, slots=True)
class Forward:
    """To the primary's app at `url`; "": nobody knows where that is. `why`, for the log, unless there is no primary,
    and `answer`, for visitors."""

    url: str
    why: str = field(default="", compare=False)
    answer: str = field(default=answers.NO_PRIMARY, compare=False)


@dataclass(frozen=True, slots=True)
class Refuse:
    """With a status, a reason for people, and, unless None, the seconds after which it may be worth trying again."""

    status: int
    why: str
    retry_s: int | None = None


Route: TypeAlias = Local | Wait | Forward | Refuse


def route(
    asked: Asked,
    status: Status | None,
    now_ns: int,
    options: Options,
    *,
    waited: bool = False,
    beside: Beside = Beside(),  # noqa: B008 - frozen
) -> Route:
    """`status`: of the replica, None without one; then `beside` says what is there instead. `waited`: as long as is
    allowed for the token."""
    if asked.private:
        return Refuse(404, "not here") if asked.forwarded else Local()
    if status is None and _is_alone(asked, options, beside):
        return _unproven(asked) or Local(primary=True, alone=True)
    if asked.database and status is not None and status.name not in ("", asked.database):
        return Refuse(421, f"the app that answers here is not that of the database {asked.database!r}: see --app-url")
    live = status is not None and status.is_live(now_ns)
    primary = live and status is not None and status.state is State.PRIMARY
    if primary and (asked.token is None or has(status, asked.token, now_ns)):
        return _unproven(asked) or Local(primary=True)
    if asked.forwarded:
        return Refuse(NOT_PRIMARY_STATUS, "this host is not the primary now; nothing was done", 1)
    if asked.writes:
        if primary:  # a token of a later term: another one is the primary, and this one does not know it yet
            return Refuse(NOT_PRIMARY_STATUS, "this host is not the primary any more; nothing was done", 1)
        return _forward(asked, status, options, beside)
    if asked.upgrade:
        return Refuse(501, "no other protocol is spoken by way of a replica; ask the primary's host", None)
    if status is None or status.state in NOTHING_HERE:
        return _forward(asked, status, options, beside)
    return _read(asked, status, now_ns, options, live=live, waited=waited)


def _is_alone(asked: Asked, options: Options, beside: Beside) -> bool:
    """What an edge has sent on shows that there are other nodes: only an app that was told so is alone then."""
    if options.standalone is not None:
        return options.standalone
    return beside.alone and options.primary_url is None and not asked.forwarded


def _unproven(asked: Asked) -> Refuse | None:
    """Who says that he is an edge and does not prove it gets nothing, and reads what is to be done."""
    if not asked.unproven:
        return None
    return Refuse(UNPROVEN_STATUS, f"the proof of a forwarded request is not taken: {asked.unproven}. Nothing was done")


def _read(asked: Asked, status: Status, now_ns: int, options: Options, *, live: bool, waited: bool) -> Route:
    if asked.token is not None and not has(status, asked.token, now_ns):
        # What is not applying will not have it in time: no worker waits for that.
        if not waited and live and (status.state in APPLYING or status.state is State.PRIMARY):
            return Wait(asked.token)
        if options.on_stale == PRIMARY and status.state is not State.PRIMARY:
            return _forward(asked, status, options)
        return Refuse(503, "this replica does not have your last change yet", 1)
    lag_s = lag_of(status, now_ns)
    if options.max_lag_s is None or lag_s <= options.max_lag_s:
        return Local()
    return _forward(asked, status, options) if options.on_lag == PRIMARY else Local(stale_s=lag_s)


def _forward(asked: Asked, status: Status | None, options: Options, beside: Beside = Beside()) -> Route:  # noqa: B008
    if asked.upgrade:
        return Refuse(501, "no other protocol is spoken by way of a replica; ask the primary's host", None)
    if status is not None and status.is_own:  # to itself nothing is sent on: its workers would wait for each other
        if status.state is State.STOPPED:
            return Forward("", "walcast, the primary here, does not run: start it again", answers.NO_NODE)
        return Forward("")
    if options.primary_url is not None:
        return Forward(options.primary_url)
    return _where_told(status, options) if status is not None else Forward("", beside.why, beside.answer)


def _where_told(status: Status, options: Options) -> Forward:
    """Where the node says; it is checked here, too: what is forwarded goes by this process's options."""
    if status.app_url:
        why = options.app_urls.refusal(status.app_url)
        return Forward("" if why else status.app_url, why, answers.NO_WAY)
    if status.app_url_refused:
        return Forward("", status.app_url_refused, answers.NO_WAY)
    if status.state in APPLYING:
        return Forward("", "the primary was started without --app-url: start it with one", answers.NO_WAY)
    if status.state is State.STOPPED:
        return Forward("", "walcast, the follower here, does not run: start it again", answers.NO_NODE)
    return Forward("")


def has(status: Status | None, token: Token, now_ns: int) -> bool:
    """Is what `token` covers in the replica? A primary has all of its term, whatever it said last."""
    if status is None:
        return False
    if status.state is State.PRIMARY and status.is_live(now_ns):
        return token.term <= status.term
    return (status.term, status.position.txid) >= (token.term, token.txid)


def heard_of(status: Status | None, token: Token) -> bool:
    """Could the primary have given it, as far as this host knows? For tokens that nothing proves."""
    if status is None:
        return False
    newest = max(status.primary_txid, status.position.txid)
    return token.term < status.term or (token.term == status.term and token.txid <= newest)


def lag_of(status: Status, now_ns: int) -> float:
    """How old what a reader sees may be, in seconds; infinite: it never was level."""
    return status.lag_ms(now_ns) / 1000 if status.level_ns else math.inf
