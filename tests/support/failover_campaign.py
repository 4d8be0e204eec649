"""Failovers at random under load, and the ledger that they are checked against.

The rules, so that what is asked is what is promised:

* A row counts as acknowledged when `barrier(followers=1)` returned after its commit, in the term of the commit (see
  `failover_app`). It must be in all copies at the end.
* A round never takes away the primary and the only follower that acknowledged: when the primary goes, both followers
  run, were attached to it, and can reach the archive. One of them may have been cut off from the primary for a moment
  before, and so have less; then the other one must be elected.
* `promote --force` is given to the follower that has the most: an operator who forces another one gives up what it
  has not.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.failover_app import create
from support.failover_steps import Step, check_steps, explain, kept_by
from support.nodes import poll
from support.replica_set import ReplicaSet, SetNode, archived_bytes, replica_set
from support.staleness import AckedRows, Oracle
from support.writers import Child, child, pause

from walcast import ltx
from walcast.archive import list_files
from walcast.errors import WalcastError
from walcast.store import open_store
from walcast.token import Token

LAG_S = 0.15
UP_S = 20.0
STALE_EVERY_S = 0.2
KINDS = ("kill", "pause", "partition", "switchover", "force", "kill", "half-partition")


@dataclass
class Ledger:
    """What the apps say: rows by (app, n), each with when; tokens in the order in which an app got them."""

    committed: dict[tuple[str, int], float] = field(default_factory=dict)
    acked: dict[tuple[str, int], tuple[float, Token]] = field(default_factory=dict)
    tokens: list[tuple[float, str, Token]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, files: dict[str, Path]) -> Ledger:
        found = cls()
        for app, file in files.items():
            for line in file.read_text().splitlines():
                at, kind, *rest = line.split()
                if kind == "commit":
                    found.committed[app, int(rest[0])] = float(at)
                elif kind == "ack":
                    token = Token(rest[0])
                    found.tokens.append((float(at), app, token))
                    found.acked.update({(app, int(n)): (float(at), token) for n in rest[1:]})
                else:
                    found.wrong.append(f"{app}: {line}")
        found.tokens.sort()
        return found


@dataclass
class Campaign:
    """A set under load. `failovers` are those that happened: kind, when it began, the old and the new primary."""

    set: ReplicaSet
    rng: random.Random
    directory: Path
    stack: ExitStack
    url: str
    apps: dict[str, Child] = field(default_factory=dict)
    readers: dict[str, Child] = field(default_factory=dict)
    failovers: list[tuple[str, float, str, str]] = field(default_factory=list)
    oracle: Oracle = field(init=False)

    # Load

    def load(self, pause_s: float = 0.004) -> None:
        """An app and a reader on every host."""
        for node in self.set.nodes.values():
            arguments = (str(node.db), node.address, node.id, str(self.directory / f"{node.id}.ledger"), str(pause_s))
            self.apps[node.id] = self.stack.enter_context(child("failover_app.py", *arguments))
            wrong = self.directory / f"{node.id}.wrong"
            wrong.touch()
            steps = self.directory / f"{node.id}.steps"
            steps.touch()
            arguments = (str(node.db), str(wrong), str(steps), *self.set.nodes)
            self.readers[node.id] = self.stack.enter_context(child("failover_reader.py", *arguments))
        acked = AckedRows({id_: self.directory / f"{id_}.ledger" for id_ in self.set.nodes})
        self.oracle = Oracle(acked, acked.query, STALE_EVERY_S)
        for node in self.set.nodes.values():
            self.oracle.add(node.db)
        self.stack.enter_context(self.oracle.watching())

    def ledger(self) -> Ledger:
        return Ledger.read({id_: self.directory / f"{id_}.ledger" for id_ in self.set.nodes})

    def wait_acks(self) -> None:
        """Until some more rows were acknowledged: the set works."""
        since = time.monotonic()

        def some() -> bool:
            return sum(at > since for at, _, _ in self.ledger_tail()) >= 3

        assert poll(some, UP_S, 0.02), f"no row is acknowledged any more: {self.state()}"

    def ledger_tail(self) -> list[tuple[float, str, str]]:
        """The newest acknowledgements."""
        found: list[tuple[float, str, str]] = []
        for id_ in self.set.nodes:
            with (self.directory / f"{id_}.ledger").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4000))
                for line in file.read().decode().splitlines()[1:]:
                    at, _, rest = line.partition(" ")
                    if rest.startswith("ack "):
                        found.append((float(at), id_, rest))
        return found

    def state(self) -> list[Any]:
        return [(node.id, node.process.running, node.facts()) for node in self.set.nodes.values()]

    # Rounds

    def round(self, kind: str) -> None:
        """One disturbance; the set is whole again afterwards."""
        old = self.attached()
        self.wait_acks()
        pause(self.rng.random() * 0.2)
        others = [node for node in self.set.nodes.values() if node is not old]
        behind = self.rng.choice(others) if self.rng.random() < 0.4 and kind != "switchover" else None
        if behind is not None:  # the other one acknowledges alone for a moment
            old.cut(behind)
            pause(LAG_S)
        began_s = time.monotonic()
        done: Callable[[SetNode, list[SetNode]], None] = getattr(self, "_" + kind.replace("-", "_"))
        done(old, others)
        new = self.set.wait_primary(other_than=old.id, seconds=UP_S)
        self.failovers.append((kind, began_s, old.id, new.id))
        if self.rng.random() < 0.5:
            pause(self.rng.random() * 0.5)  # on its own for a while
        self.whole(old)
        self.attached()
        if self.rng.random() < 0.25:
            follower = self.rng.choice([node for node in self.set.nodes.values() if node is not new])
            follower.kill()
            pause(self.rng.random() * 0.1)
            follower.start(ready=False)
            self.attached()

    def _kill(self, old: SetNode, others: list[SetNode]) -> None:
        old.kill()
        self.set.gates.heal(drop=True)

    def _pause(self, old: SetNode, others: list[SetNode]) -> None:
        old.pause()
        self.set.gates.heal(drop=True)

    def _partition(self, old: SetNode, others: list[SetNode]) -> None:
        old.lose_store()
        self.set.gates.heal(drop=True)
        old.cut()

    def _half_partition(self, old: SetNode, others: list[SetNode]) -> None:
        """It loses the archive and one follower, the other one still hears it."""
        old.lose_store()
        self.set.gates.heal(drop=True)
        old.cut(self.rng.choice(others))

    def _switchover(self, old: SetNode, others: list[SetNode]) -> None:
        try:
            self.rng.choice(others).promote()
        except WalcastError as error:
            raise AssertionError(f"a switchover failed: {error}: {self.state()}") from error

    def _force(self, old: SetNode, others: list[SetNode]) -> None:
        self.rng.choice((old.kill, old.pause))()
        self.set.gates.heal(drop=True)
        most = max(others, key=lambda node: (node.facts()["term"], node.facts()["txid"]))
        try:
            most.promote(force=True)
        except WalcastError as error:
            if "another node became the primary" not in str(error):
                raise AssertionError(f"{most.id} cannot be promoted: {error}: {self.state()}") from error

    def whole(self, old: SetNode) -> None:
        """Undo what was done; what was on its way arrives late, or never."""
        self.set.gates.heal(drop=self.rng.random() < 0.5)
        if old.lost_store:
            old.find_store()
        if old.process.running:
            old.resume()
        else:
            old.start(ready=False)

    def attached(self) -> SetNode:
        """Until there is one primary and both others stream from it, in its term, not far behind."""

        def look() -> SetNode | None:
            primary = self.set.find_primary()
            if primary is None:
                return None
            its = primary.facts()
            for node in self.set.nodes.values():
                facts = node.facts() if node is not primary else its
                streams = facts.get("state") == "streaming" and facts["primary"] == primary.gate
                if node is not primary and (not streams or facts["term"] != its["term"]):
                    return None
            return primary

        found = poll(look, UP_S, 0.02)
        assert found, f"the set does not come together: {self.state()}"
        primary: SetNode = found
        return primary

    # The end

    def finish(self) -> dict[str, Any]:
        """Stop the load, check everything; the numbers."""
        for app in self.apps.values():
            app.stop()
        primary = self.set.wait_level(UP_S)
        assert poll(lambda: self._archived(primary), UP_S, 0.05), primary.facts()
        snapshots = {id_: reader.stop()["snapshots"] for id_, reader in self.readers.items()}
        wrong = [line for id_ in self.set.nodes for line in (self.directory / f"{id_}.wrong").read_text().splitlines()]
        events = {id_: node.events() for id_, node in self.set.nodes.items()}
        data = self.set.same_bytes()
        ledger = self.ledger()
        assert wrong == [], "readers saw what never was"
        self.oracle.check()
        assert ledger.wrong == []
        assert min(snapshots.values()) > 10
        rows = self._rows()
        lost = sorted(ledger.acked.keys() - rows)
        assert not lost, f"{len(lost)} acknowledged rows are lost: {[(row, ledger.acked[row]) for row in lost[:10]]}"
        steps = self.steps()
        check_steps(steps, {row: at for row, (at, _) in ledger.acked.items()})
        check_terms(ledger, events)
        check_archive(self.url)
        assert archived_bytes(self.url, self.directory) == data, "the archive restores to something else"
        return self._numbers(ledger, rows) | {"steps_back": dict(Counter(step.kind for step in steps))}

    def steps(self) -> list[Step]:
        """Every step back that a reader saw, with what explains it."""
        found = []
        for node in self.set.nodes.values():
            kept = kept_by(node.db)
            lines = (self.directory / f"{node.id}.steps").read_text().splitlines()
            found += [explain(node.id, line, kept) for line in lines]
        return found

    def _archived(self, primary: SetNode) -> bool:
        facts = primary.facts()
        return bool(facts["archive"] and facts["archive"]["txid"] == facts["txid"])

    def _rows(self) -> set[tuple[str, int]]:
        import sqlite3

        db = sqlite3.connect(next(iter(self.set.nodes.values())).db)
        try:
            return set(db.execute("SELECT app, n FROM rows"))
        finally:
            db.close()

    def _numbers(self, ledger: Ledger, rows: set[tuple[str, int]]) -> dict[str, Any]:
        """Seconds until another node's app had a row acknowledged, by kind; how many rows there were and are."""
        waits: dict[str, list[float]] = {}
        for kind, began_s, old, _ in self.failovers:
            after = [at for at, app, _ in ledger.tokens if at > began_s and app != old]
            waits.setdefault(kind, []).append(after[0] - began_s)
        every = [wait for found in waits.values() for wait in found]
        return {
            "failovers": len(self.failovers),
            "median_s": round(statistics.median(every), 2),
            "max_s": round(max(every), 2),
            "by_kind": {kind: (len(w), round(statistics.median(w), 2), round(max(w), 2)) for kind, w in waits.items()},
            "committed": len(ledger.committed),
            "acknowledged": len(ledger.acked),
            "lost_unacknowledged": len(ledger.committed.keys() - rows),
        }


def check_terms(ledger: Ledger, events: dict[str, list[dict[str, Any]]]) -> None:
    """One node a term; terms only go up, as apps see it; no TXID of two terms overlaps."""
    holders: dict[int, set[str]] = {}
    for id_, found in events.items():
        for event in found:
            if event["event"].startswith("promoted"):
                holders.setdefault(event["term"], set()).add(id_)
    assert all(len(nodes) == 1 for nodes in holders.values()), f"two primaries in one term: {holders}"
    reach: dict[int, tuple[int, int]] = {}
    for _, _, token in ledger.tokens:
        low, high = reach.get(token.term, (token.txid, token.txid))
        reach[token.term] = (min(low, token.txid), max(high, token.txid))
    ordered = sorted(reach.items())
    for (term, (_, high)), (later, (low, _)) in pairwise(ordered):
        assert high < low, f"TXIDs of terms {term} and {later} overlap: {high} and {low}"
    newest: dict[str, Token] = {}
    for _, app, token in ledger.tokens:
        assert app not in newest or newest[app] <= token, f"{app} got {token} after {newest[app]}"
        newest[app] = token


def check_archive(url: str) -> None:
    """On each level the terms of the files go up with their TXIDs."""
    with open_store(url) as store:
        found: dict[int, list[tuple[int, int]]] = {}
        for file in list_files(store):
            header = ltx.Header.decode(store.get(file.key, 0, ltx.HEADER_SIZE))
            assert header is not None
            found.setdefault(file.level, []).append((header.min_txid, header.term))
    for level, files in found.items():
        terms = [term for _, term in sorted(files)]
        assert terms == sorted(terms), f"level {level}: {sorted(files)}"


@contextmanager
def campaign(
    directory: Path, seed: int, *, lease_s: float = 1.0, script: str | None = None, bug: str = ""
) -> Iterator[Campaign]:
    """Three nodes under load. `script` and `bug`: what is run instead of walcast, and what is wrong with it."""
    environment = {"PLANTED_BUG": bug} if bug else {}
    with ExitStack() as stack:
        it = stack.enter_context(
            replica_set(directory, lease_s=lease_s, create=create, script=script, environment=environment)
        )
        made = Campaign(it, random.Random(seed), directory, stack, str(directory / "shared"))
        made.load()
        yield made
