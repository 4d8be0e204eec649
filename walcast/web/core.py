"""What both middlewares share: what a request is, what the replica says, which token an answer carries."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from walcast.errors import ConfigError, NotAllowed, Unavailable, WalcastError
from walcast.identity import NAME as ID_NAME
from walcast.identity import read_database_id
from walcast.primary import Primary
from walcast.rarely import Rarely
from walcast.replica import Replica
from walcast.statedir import behind_link, state_dir
from walcast.statusfile import State, Status, read_status, status_path
from walcast.token import NotEnoughFollowers, Token
from walcast.web import answers
from walcast.web import headers as h
from walcast.web.beside import Beside, look_beside
from walcast.web.forwarding import BadRequest
from walcast.web.options import Options
from walcast.web.proof import (
    Proof,
    Secrets,
    Unproven,
    forwarded_name,
    newest_token,
    proof_of,
    token_keys,
    token_text,
)
from walcast.web.routing import UNPROVEN_STATUS, Asked, Forward, Local, Route, heard_of, route
from walcast.web.spool import Budget
from walcast.web.taken import Full, Taken
from walcast.web.target import is_below, target_of

log = logging.getLogger("walcast.web")  # what is wrong is in the message itself: an app's handlers show no extras

_NOT_IN_COOKIE = re.compile(r"[^A-Za-z0-9_-]")

ASK_AGAIN_S = 0.05  # for a token, while the node is being started again
KNOWN_FOR_S = 0.05  # how old may be what is known of the replica, for reads that ask for no token
HOLD_EVERY_S = 0.05  # how often a request that waits for a primary looks whether there is one
ASK_MOST_S = 0.5  # and how often, at least, it asks one that was none


class InDoubt(Exception):
    """The app has done what it was asked for, but this host is not the primary any more: it may be lost, or not."""


@dataclass(slots=True)
class Request:
    """What the app finds under `walcast.request` in the environment, or in the scope.

    For requests that turn out to write, whatever their method, both set before the answer begins: `writes = True`
    where this host answers as the `primary`, so that the answer carries a token; else `forward = True`, and the request
    goes to the primary instead. Its body must not have been read then.

    `forward = True` where this host answers as the primary: nothing was written, since the database is locked for good.
    The primary's place has moved, and the request follows it, with its body if that is short.
    """

    writes: bool
    primary: bool
    forward: bool = False


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request, as far as it matters here. `proof`: of the edge that sent it on. `moved`: it was here already, and the
    primary's place moved away under it."""

    method: str
    path: str
    query: str
    asked: Asked
    proof: Proof | None
    moved: bool = False

    def that_writes(self) -> Incoming:
        """The same, once it is known to write."""
        return replace(self, asked=replace(self.asked, writes=True))

    def that_moved(self) -> Incoming:
        """The same, once it has found the database locked."""
        return replace(self, asked=replace(self.asked, writes=True), moved=True)


class Room:
    """For so many at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._inside = 0

    @contextmanager
    def enter(self) -> Iterator[bool]:
        """False when it is full: go on without waiting."""
        with self._lock:
            inside = self._inside < self._most
            self._inside += inside
        try:
            yield inside
        finally:
            with self._lock:
                self._inside -= inside


class Trying:
    """A request that nobody has done anything about: for how long it is tried, and when again.

    Elsewhere at once, at the same place less and less often: there may be many that wait, and who made up a token must
    not have an edge ask for him all the time.
    """

    def __init__(self, most_s: float) -> None:
        self._until_s = time.monotonic() + most_s
        self._asked = ""
        self._again_s = 0.0
        self._pause_s = HOLD_EVERY_S

    @property
    def pause_s(self) -> float:
        """Until it is looked again; not positive when there is no more time."""
        return min(HOLD_EVERY_S, self._until_s - time.monotonic())

    def may_ask(self, url: str) -> bool:
        """Now?"""
        return url != self._asked or time.monotonic() >= self._again_s

    def in_vain(self, url: str) -> None:
        """It was asked, and it was not the primary, or nobody was there."""
        self._asked, self._again_s = url, time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, ASK_MOST_S)


class Core:
    """For the database at `path`. Used by many threads at once, and after a fork."""

    def __init__(self, path: str | os.PathLike[str], room: int, told: Mapping[str, Any]) -> None:
        """`room`: how many may wait at once, unless `told` otherwise."""
        self.options = Options.of(**told)
        self.path = behind_link(Path(path).absolute())
        self.replica = Replica(self.path)
        self.primary = Primary(self.path)
        self.waiting = Room(room if self.options.max_waiting is None else self.options.max_waiting)
        self.spooled = Budget(self.options.max_spooled)
        self._taken = Taken(state_dir(self.path))
        self._rarely = Rarely(log)
        self._beside = Beside()
        self._said_alone = False
        self._known: tuple[float, Status | None] = (-KNOWN_FOR_S, None)
        self._id: tuple[int, int, str] = (0, 0, "")

    # What is asked, and what is known

    def incoming(
        self,
        method: str,
        app_path: str,
        full_path: str,
        query: str,
        *,
        forwarded: str | None,
        tokens: list[str],
        cookie: str,
        upgrade: bool,
    ) -> Incoming:
        """`app_path`: below where the app is mounted, `full_path`: all of it; the rest are headers."""
        options = self.options
        name = ""
        if tokens or options.cookie in cookie:
            name = self.name
            for known in self._cookies(name):
                tokens = [*tokens, *h.cookies(cookie, known)]
        proof, unproven = None, ""
        if forwarded is not None and options.secrets:
            try:
                proof = proof_of(forwarded, method, target_of(full_path, query), time.time(), options.secrets)
            except Unproven as error:
                unproven = str(error)
                facts = {"error": unproven}
                self._rarely.log(logging.WARNING, f"a forwarded request is not proven: {unproven}", error.flaw, facts)
        asked = Asked(
            writes=options.writes(method, app_path),
            private=bool(options.private) and is_below(app_path, options.private),
            forwarded=forwarded is not None,
            upgrade=upgrade,
            token=self._newest_token(tokens, name) if tokens else None,
            database=forwarded_name(forwarded) if forwarded is not None else "",
            unproven=unproven,
        )
        return Incoming(method, full_path, query, asked, proof)

    def _newest_token(self, tokens: list[str], name: str) -> Token | None:
        """Of those that are ours. Where nothing can be proved, of those that the primary could have given: nobody waits
        for what was made up."""
        keys = self._token_keys()
        token = newest_token(tokens, name, keys)
        if token is not None and not keys and not heard_of(self.status(), token):
            return None
        return token

    def _token_keys(self) -> Secrets:
        if self.options.secrets:
            return self.options.secrets
        return token_keys((), self._database_id())

    def _database_id(self) -> str:
        """As the state folder says; "" while the node has none, or it cannot be read."""
        folder = state_dir(self.path)
        try:
            found = (folder / ID_NAME).stat()
            if self._id[:2] != (found.st_mtime_ns, found.st_ino):
                self._id = (found.st_mtime_ns, found.st_ino, read_database_id(folder) or "")
        except (OSError, ConfigError):
            return ""
        return self._id[2]

    def take(self, proof: Proof) -> None:
        """Take the request that it proves, once for this host. BadRequest when it was taken before."""
        try:
            first = self._taken.take(proof.nonce, proof.until_s, int(time.time()))
        except Full:
            raise BadRequest(503, "too many forwarded requests at once; nothing was done") from None
        if not first:
            self._rarely.log(logging.WARNING, "a forwarded request was repeated", "repeated", {})
            raise BadRequest(UNPROVEN_STATUS, "this forwarded request was taken before; nothing was done again")

    def check_body(self, proof: Proof, sha256: str) -> None:
        """BadRequest when the body is not the one that was proved."""
        if sha256 != proof.body_sha256:
            self._rarely.log(logging.WARNING, "the body of a forwarded request was changed on its way", "body", {})
            raise BadRequest(UNPROVEN_STATUS, "the body is not the one that the edge sent on; nothing was done")

    def no_way(self, found: Route) -> str:
        """What a visitor is told where nothing answers as the primary's app; the log says why."""
        if not isinstance(found, Forward) or found.url:
            return answers.NO_PRIMARY
        if found.why:
            event = f"no request can be sent on to the primary's app: {found.why}"
            self._rarely.log(logging.WARNING, event, found.why, {"error": found.why})
        return found.answer

    def route(self, asked: Asked, *, waited: bool = False) -> Route:
        """Where to now."""
        plain = not asked.writes and not asked.forwarded and asked.token is None
        status = self.status(fresh=not plain)
        found = route(asked, status, time.time_ns(), self.options, waited=waited, beside=self._beside)
        if isinstance(found, Local) and found.alone and not self._said_alone:
            self._said_alone = True
            log.info("no walcast here: the app writes the database by itself", extra={"database": str(self.path)})
        return found

    def status(self, *, fresh: bool = True) -> Status | None:
        """What the node says; None when none ever ran."""
        at, known = self._known
        now = time.monotonic()
        if not fresh and 0 <= now - at < KNOWN_FOR_S:
            return known
        try:
            known = read_status(self.path)
        except Unavailable as error:
            # A file that cannot be read tells of a node all the same: nobody is alone here.
            known = Status() if self.options.standalone and status_path(self.path).exists() else None
            self._beside = look_beside(self.path, error)
        self._known = (now, known)
        return known

    @property
    def name(self) -> str:
        """What the primary calls the database; "" while no node has said it."""
        status = self.status(fresh=False)
        return status.name if status is not None else ""

    def _cookies(self, name: str) -> tuple[str, str]:
        """Of what a visitor has written, and of what he has seen: the answer to a slow read must not take back what the
        answer to a write has set meanwhile. Cookies are every app's on a host, whatever its port."""
        base = f"{self.options.cookie}-{_NOT_IN_COOKIE.sub('-', name)}" if name else self.options.cookie
        return base, f"{base}-seen"

    # Which token an answer carries

    def wants_token(self, incoming: Incoming, local: Local, request: Request) -> bool:
        """Does the answer of the app here carry one? After a write; and where a visitor must not go back in time: who
        was sent here once reads at an edge again the next time."""
        if local.alone:
            return False
        if local.primary and (request.writes or incoming.asked.forwarded):
            return True
        return self.options.monotonic_reads

    def answer_headers(self, incoming: Incoming, local: Local, request: Request, *, secure: bool) -> h.Headers:
        """More of them, for what the app has just done, or has just read. Blocks while a token is fetched. InDoubt."""
        found: h.Headers = []
        if local.stale_s is not None:
            found.append((h.STALE, f"{local.stale_s:.1f}" if local.stale_s < math.inf else "unknown"))
        if self.wants_token(incoming, local, request):
            found += self._token_headers(writes=request.writes, primary=local.primary, secure=secure)
        return found

    def _token_headers(self, *, writes: bool, primary: bool, secure: bool) -> h.Headers:
        options, name = self.options, self.name
        try:
            token, more = self._token(writes=writes, primary=primary)
        except (WalcastError, OSError, ValueError) as error:
            facts = {"error": str(error)}
            self._rarely.log(logging.WARNING, f"an answer goes without a token: {error}", type(error).__name__, facts)
            if not (writes and primary):
                return []
            status = self.status()
            if status is None or status.state is not State.PRIMARY or not status.is_live(time.time_ns()):
                raise InDoubt from error
            return [(h.UNCONFIRMED, f"0/{options.followers}" if options.followers else _without_token(error))]
        cookie = self._cookies(name)[0 if writes else 1]
        text = token_text(token, name, self._token_keys())
        return h.token_headers(text, cookie=cookie, max_age_s=options.cookie_s, secure=secure) + more

    def _token(self, *, writes: bool, primary: bool) -> tuple[Token, h.Headers]:
        if not primary:
            status = self.status()
            if status is None:
                raise Unavailable(f"{self.path}: nothing says how far it is")
            return Token.of(status.term, status.position.txid), []
        until_s = time.monotonic() + self.options.barrier_s
        while True:
            left_s = max(0.0, until_s - time.monotonic())
            try:
                return self.primary.barrier(followers=self.options.followers if writes else 0, timeout=left_s), []
            except NotEnoughFollowers as error:
                log.warning(f"too few followers have a write: {error}", extra={"error": str(error)})
                return error.token, [(h.UNCONFIRMED, f"{error.applied}/{error.wanted}")]
            except Unavailable:
                if left_s <= ASK_AGAIN_S:
                    raise
                time.sleep(ASK_AGAIN_S)  # a node that is started again is the primary again


def _without_token(error: Exception) -> str:
    return "no token: the app's user may not open walcast's socket" if isinstance(error, NotAllowed) else "no token"


def with_token(headers: h.Headers, more: h.Headers) -> h.Headers:
    """The answer's headers with those of the token. What is set for one visitor is kept by no cache for others."""
    if not any(name == "set-cookie" for name, _ in more):
        return headers + more
    told = [value for name, value in headers if name.lower() == "cache-control"]
    rest = [(name, value) for name, value in headers if name.lower() != "cache-control"]
    parts = [part.strip() for value in told for part in value.split(",") if part.strip()]
    kept = [part for part in parts if part.partition("=")[0].strip().lower() not in ("public", "s-maxage", "private")]
    return [*rest, *more, ("cache-control", ", ".join(["private", *kept]))]
