"""Threads that look on: what each node says that it is, the lease and the claims, who can be written to, and what a
follower has applied. Each waits for nothing longer than a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from walcast import local
from walcast.errors import WalcastError
from walcast.position import Position
from walcast.primary import Primary
from walcast.store import Store
from walcast.store.directory import DirectoryStore
from walcast_node.failover.claims import Claim, read_claims
from walcast_node.failover.lease import KEY, Lease
from walcast_node.rehearsal.drill import sql
from walcast_node.rehearsal.drill.ledger import Ledger, Writable
from walcast_node.rehearsal.drill.nodes import Node

LOOK_S = 0.04
ASK_S = 0.5
PROBE_S = 0.025
RECENT_S = 0.05
BARRIER_S = 0.5
BARRIER_EVERY_S = 0.03


@dataclass(frozen=True, slots=True)
class Look:
    """What a node said of itself. Seconds of the monotonic clock."""

    at_s: float
    role: str
    term: int = 0
    position: Position = Position()  # noqa: RUF009 - frozen
    state: str = ""
    primary: str = ""
    archived_txid: int = 0

    @property
    def word(self) -> str:
        """For the timeline."""
        return self.role if self.role != "follower" or self.state == "streaming" else "catching-up"


def ask(node: Node) -> Look:
    """WalcastError when it does not answer."""
    with local.ask(node.database, "status", timeout_s=ASK_S) as (facts, _):
        one = facts["databases"][0] if "databases" in facts else facts
        return Look(
            time.monotonic(),
            str(one["role"]),
            int(one["term"]),
            Position.parse(one["position"]),
            str(one.get("state") or ""),
            str(one.get("primary") or ""),
            int((one.get("archive") or {}).get("txid") or 0),
        )


@dataclass(slots=True)
class Seen:
    """What the threads have seen, oldest first; lists only grow."""

    looks: dict[str, list[Look]] = field(default_factory=dict)
    words: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    leases: list[tuple[float, Lease]] = field(default_factory=list)
    claims: list[tuple[float, Claim]] = field(default_factory=list)
    writable: list[Writable] = field(default_factory=list)
    refused: list[tuple[float, str, str]] = field(default_factory=list)

    def last(self, name: str) -> Look | None:
        looks = self.looks.get(name)
        return looks[-1] if looks else None


class Watch:
    """All of these threads."""

    def __init__(
        self,
        nodes: dict[str, Node],
        store: Store,
        ledger: Ledger,
        lock: threading.Lock,
        *,
        store_every_s: float,
        followers: int = 1,
    ) -> None:
        self.seen = Seen({name: [] for name in nodes}, {name: [] for name in nodes})
        self.failure = ""
        self._nodes = nodes
        self._store = store
        self._store_every_s = store_every_s
        self._exact_times = isinstance(store, DirectoryStore)
        self._ledger = ledger
        self._lock = lock
        self._followers = followers
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to look."""
        loops: list[tuple[float, Callable[[], object]]] = [
            (LOOK_S, partial(self._look, node)) for node in self._nodes.values()
        ]
        loops += [
            (self._store_every_s, self._look_at_lease),
            (PROBE_S, self._probe),
            (BARRIER_EVERY_S, self._acknowledge),
        ]
        for every_s, work in loops:
            thread = threading.Thread(target=self._repeat, args=(every_s, work), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2.0)
        self._store.close()

    def _repeat(self, every_s: float, work: Callable[[], object]) -> None:
        while not self._stop.wait(every_s):
            try:
                work()
            except (WalcastError, OSError):
                continue  # whoever was asked is away: looked at again
            except Exception as error:  # noqa: BLE001 - ends the drill: without this look its promises mean nothing
                self.failure = f"{type(error).__name__}: {error}"
                return

    def _look(self, node: Node) -> None:
        word = node.absent
        if not word:
            try:
                look = ask(node)
            except WalcastError:
                word = "starting"
            else:
                self.seen.looks[node.name].append(look)
                word = look.word
        words, absent = self.seen.words[node.name], node.absent
        if not words or words[-1][1] != (absent or word):
            words.append((node.absent_s or time.monotonic(), absent) if absent else (time.monotonic(), word))

    def _look_at_lease(self) -> None:
        found = self._store.read(KEY)
        if found is not None:
            lease = Lease.decode(found.data)
            before = self.seen.leases[-1][1] if self.seen.leases else None
            if before is None or (before.term, before.holder) != (lease.term, lease.holder):
                self.seen.leases.append((time.monotonic(), lease))
        known = {(claim.id, claim.nonce) for _, claim in self.seen.claims}
        for listed, claim in read_claims(self._store):
            if (claim.id, claim.nonce) not in known:
                # S3 says only the second; and a look comes later than what it sees.
                ago_s = time.time() - listed.timestamp_ms / 1000 if self._exact_times else 0.0
                self.seen.claims.append((time.monotonic() - max(0.0, ago_s), claim))

    def _probe(self) -> None:
        """Could somebody write where nobody does? Not where the app has just committed: that is known."""
        with self._lock:
            row = self._ledger.rows[-1] if self._ledger.rows else None
        for node in self._nodes.values():
            busy = row is not None and row.node == node.name and time.monotonic() - row.ended_s < RECENT_S
            if not node.absent and not busy and node.ready is not None:
                can, why = can_write(node)
                if node.absent:
                    continue
                if can:
                    self.seen.writable.append(Writable(time.monotonic(), node.name))
                else:
                    self.seen.refused.append((time.monotonic(), node.name, why))

    def _acknowledge(self) -> None:
        with self._lock:
            asked = self._ledger.ask()
        node = self._nodes.get(asked.node) if asked else None
        if asked is None or node is None or node.absent or node.ready is None:
            return
        with Primary(node.listen) as primary:
            primary.barrier(followers=self._followers, timeout=BARRIER_S)
        with self._lock:
            self._ledger.acknowledge(asked)


def can_write(node: Node) -> tuple[bool, str]:
    """Does SQLite give the write lock, without waiting? What it says if not."""
    from sqlite3 import OperationalError

    db: Any = None
    try:
        db = sql.connect(node.database)
        db.execute("begin immediate")
        db.execute("rollback")
    except OperationalError as error:
        return False, str(error)
    finally:
        if db is not None:
            db.close()
    return True, ""
