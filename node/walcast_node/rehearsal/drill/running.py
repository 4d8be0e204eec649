"""The part of a drill that can be done to a set that serves users: a switchover to a follower, and back.

Only what its nodes are asked for from outside: no process is touched, nothing is written to the database. What a dead,
a cut off or a stopped node would do is for a set of the drill's own, because rows that only one node had are lost then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from walcast import wire
from walcast.errors import ConfigError, WalcastError
from walcast.primary import Primary
from walcast_follower.subscribe.primary_client import Client
from walcast_follower.verify import verify_replica
from walcast_node.commands.status_facts import local_status, primary_status
from walcast_node.config.configuration import Config
from walcast_node.failover.switchover_request import Switched, switch_over
from walcast_node.rehearsal.drill.facts import Attached, Mark, Result, Step, between
from walcast_node.rehearsal.drill.stage import Broken

POLL_S = 0.1
NEAR_TXIDS = 1000
ANYWHERE = ("0.0.0.0", "[::]")

NOT_DONE = (
    "kill -9 of the primary, a partition, SIGSTOP of the holder: transactions that one node alone had are lost then; "
    "`walcast drill` without --config does all that to a set of its own",
    "a write load with a ledger, readers, a restore of the archive: nothing is written to a database in use; "
    "`walcast verify URL` proves its archive",
)


@dataclass(frozen=True, slots=True)
class Target:
    """The set: where one of its nodes listens, the database's name, and its file on this machine."""

    address: wire.Address
    tls: wire.Tls
    name: str
    path: Path
    archive: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What is promised, and how long is waited."""

    max_pause_ms: float
    patience_s: float = 60.0


def target_of(config: Config, name: str | None) -> Target:
    """ConfigError when the file does not tell which database, or where."""
    if config.listen is None:
        raise ConfigError(f"{config.path}: says no 'listen', so that nobody knows where the set is")
    found = [one for one in config.dbs if name in (None, one.name)]
    if len(found) != 1:
        known = ", ".join(one.name for one in config.dbs) or "none"
        raise ConfigError(f"{config.path}: give the --name of one database; there is: {known}")
    host = "127.0.0.1" if config.listen.host in ANYWHERE else config.listen.host
    archive = found[0].archive.url if found[0].archive else ""
    return Target(wire.Address(host, config.listen.port), config.tls, found[0].name, found[0].path, archive)


def would_do(target: Target) -> list[str]:
    """Before somebody confirmed it."""
    return [
        f"would ask {target.address} for the set of {target.name!r}, hand the primary's place to a follower that is "
        "level, wait until all others follow it, and hand it back: apps wait twice, some ten milliseconds each time",
        *(f"would not do: {text}" for text in NOT_DONE),
        "nothing was done; give --confirm to do it",
    ]


def drill_running(target: Target, limits: Limits, say: Callable[[str], None]) -> Result:
    """There and back."""
    began_s = time.monotonic()
    result = Result(
        kind="running",
        version=version("walcast"),
        started=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        archive=target.archive,
        not_done=list(NOT_DONE),
    )
    running = _Running(target, limits, result, say, began_s)
    try:
        running.there_and_back()
    except (Broken, WalcastError, OSError) as error:
        where = f"; the primary is {running.now_at} now" if running.now_at != running.at_home else ""
        result.failure = f"{error}{where}"
    result.seconds = round(time.monotonic() - began_s, 2)
    evidence = result.failure or "there and back"
    result.promise("drill.ended", "", "every step came to its end", result.failure is None, evidence)
    return result


class _Running:
    def __init__(
        self, target: Target, limits: Limits, result: Result, say: Callable[[str], None], began_s: float
    ) -> None:
        self.target, self.limits, self.result, self.say, self.began_s = target, limits, result, say, began_s
        self.at_home = self.now_at = ""

    def at(self) -> float:
        return round(time.monotonic() - self.began_s, 4)

    def there_and_back(self) -> None:
        address, facts = self._primary()
        lease = facts.get("lease")
        self.result.lease_s = float(lease["lease_s"]) if lease else 0.0
        before = {str(one["id"]) for one in facts["followers"]}
        to = _candidate(address, facts)
        there, after = self._switch("there", "switchover", address, to, expected=len(before))
        back = {one for one in after if one not in before}
        if lease is not None and lease["holder"] in after:
            back = {str(lease["holder"])}
        if len(back) != 1:
            raise Broken(f"the old primary at {address} is not among the followers of {there.primary}: {sorted(after)}")
        (old,) = back
        self.result.steps[0].old = old
        self.result.nodes = sorted({*before, old})
        self.at_home = old
        self._switch("back", "switchover back", wire.Address.parse(there.primary), old, expected=len(before))

    def _primary(self) -> tuple[wire.Address, dict[str, Any]]:
        """Ask the node of the file; if it is not the primary, ask where that is."""
        address = self.target.address
        for _ in range(3):
            facts = self._facts(address)
            if facts["role"] == "primary":
                return address, facts
            if not facts.get("primary"):
                raise Broken(f"{address}: is {facts['role']}, and does not know the primary")
            address = wire.Address.parse(facts["primary"])
        raise Broken(f"{address}: is not the primary either")

    def _facts(self, address: wire.Address) -> dict[str, Any]:
        databases: list[dict[str, Any]] = primary_status(address, self.target.tls)["databases"]
        found = [one for one in databases if one["name"] == self.target.name] or databases
        if len(found) != 1:
            raise Broken(f"{address}: serves no database {self.target.name!r}")
        return found[0]

    def _switch(
        self, key: str, title: str, address: wire.Address, to: str, *, expected: int
    ) -> tuple[Switched, set[str]]:
        limits = self.limits
        what = f"the primary at {address} hands its place to {to}"
        step = Step(key, title, what, self.at(), old=self.now_at, new=to)
        self.result.steps.append(step)
        self.say(f"{title}: {what}")
        self.result.marks.append(Mark(self.at(), to, title))
        step.fault_s, began_s = self.at(), time.monotonic()
        done = switch_over(address, to, self.target.tls, name=self.target.name)
        step.promote_ms = between(time.monotonic(), began_s)
        step.pause_ms, step.term = done.pause_ms, done.term
        self.now_at = to
        words = f"apps wait at most {limits.max_pause_ms:g} ms"
        evidence = f"the old primary held writers for {done.pause_ms:.0f} ms"
        self.result.promise(f"{key}.pause", key, words, done.pause_ms <= limits.max_pause_ms, evidence)
        attached = self._attached(step, wire.Address.parse(done.primary), expected, began_s)
        now = self._facts(wire.Address.parse(done.primary))
        kept = now["role"] == "primary" and now["txid"] >= done.position.txid
        evidence = f"everything up to {done.position} was with {to} before it took over"
        self.result.promise(f"{key}.lost", key, "nothing is lost", kept, evidence)
        self._level(key, wire.Address.parse(done.primary), expected)
        step.ended_s = self.at()
        return done, attached

    def _attached(self, step: Step, address: wire.Address, expected: int, began_s: float) -> set[str]:
        """Until as many follow as before, the old primary among them."""
        seen: dict[str, float] = {}
        while len(seen) < expected and time.monotonic() - began_s < self.limits.patience_s:
            for one in self._facts(address)["followers"]:
                if one["state"] == "streaming":
                    seen.setdefault(str(one["id"]), time.monotonic())
            time.sleep(POLL_S)
        step.attached = [Attached(name, between(at_s, began_s)) for name, at_s in seen.items()]
        step.rejoin_ms = max((one.after_ms or 0.0 for one in step.attached), default=None)
        kept = len(seen) >= expected
        evidence = f"{len(seen)} of {expected} follow the new primary" + (f": {', '.join(seen)}" if seen else "")
        self.result.promise(f"{step.key}.reattached", step.key, "all others follow the new primary", kept, evidence)
        return set(seen)

    def _level(self, key: str, address: wire.Address, expected: int) -> None:
        """All followers have what the primary has; the one on this machine is compared page by page."""
        tls = self.target.tls
        ask = Primary(
            str(address),
            self.target.name,
            tls_ca=tls.servers_ca,
            tls_cert=tls.cert,
            tls_key=tls.key,
            token_file=tls.token_file,
            insecure=tls.insecure,
        )
        words = "every follower has what the primary has"
        try:
            with ask as primary:
                token = primary.barrier(followers=expected, timeout=10.0)
            self.result.promise(f"{key}.level", key, words, True, f"{expected} have applied {token}")
        except WalcastError as error:
            self.result.promise(f"{key}.level", key, words, False, str(error))
        try:
            is_follower = local_status(self.target.path)["role"] == "follower"
        except WalcastError:
            is_follower = False
        if is_follower:
            self._verify(key, address)

    def _verify(self, key: str, address: wire.Address) -> None:
        async def run() -> str:
            client = Client(address, self.target.tls, database=self.target.name, follower_id="drill-verify")
            try:
                done = await verify_replica(self.target.path, client)
            finally:
                await client.close()
            return f"{done.pages:,} pages, at {done.position}"

        words = f"{self.target.path} is equal to the primary's"
        try:
            self.result.promise(f"{key}.equal", key, words, True, asyncio.run(run()))
        except WalcastError as error:
            self.result.promise(f"{key}.equal", key, words, False, str(error))


def _candidate(address: wire.Address, facts: dict[str, Any]) -> str:
    """The id of a follower that is level and may take over."""
    for one in sorted(facts["followers"], key=lambda one: float(one["lag_ms"])):
        if one.get("address") and one["state"] == "streaming" and one["lag_txids"] < NEAR_TXIDS:
            return str(one["id"])
    raise Broken(f"{address}: no follower is level and may be promoted, so nothing was done")
