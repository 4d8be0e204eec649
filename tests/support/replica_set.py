"""A replica set of real processes on this machine: nodes, each behind a gate and with its own way to the archive.

    with replica_set(tmp_path, lease_s=2) as it:      # a, b and c; a is the primary
        it.node("a").kill()
        assert it.wait_primary(other_than="a").id in ("b", "c")

Every node has a folder: its database, its logs, and `archive`, a link to the folder that all share. `lose_store` turns
that link into one that leads nowhere, for this node alone; `cut` stops what goes over the network between nodes.
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.failover_gates import Gates, gates
from support.nodes import LOOPBACK, PATIENCE_S, Node, poll
from support.writers import Sql, sql

from walcast import local
from walcast.errors import WalcastError
from walcast.primary import Primary
from walcast.statedir import state_dir
from walcast_node.commands.status_facts import local_status

IDS = ("a", "b", "c")
LEASE_S = 2.0


@dataclass
class SetNode:
    """One node: its process, which may be stopped and started, and what belongs to it on disk."""

    id: str
    directory: Path
    flags: list[str]
    gate: str
    process: Node
    gates: Gates
    shared: Path | None = None
    name: str = "app.db"
    lost_store: bool = False
    apps: ExitStack = field(default_factory=ExitStack)

    @property
    def db(self) -> Path:
        return self.directory / self.name

    @property
    def address(self) -> str:
        """Where it listens itself, for apps on its own host."""
        return str(self.process.events("listening")[-1]["address"])

    # Its process

    def start(self, *, ready: bool = True) -> SetNode:
        """Start it, or start it again; it listens where it did before."""
        self.process.start()
        poll(lambda: self._listening() or not self.process.running)
        assert self._listening(), f"{self.id} ended:\n{self.process.err.read_text()[-2000:]}"
        self.gates.lead(self.id, self.address)
        arguments = self.process.arguments
        arguments[arguments.index("--listen") + 1] = self.address
        if ready:
            self.process.ready()
        return self

    def _listening(self) -> bool:
        return len(self.process.events("listening")) >= self.process.starts

    def kill(self) -> None:
        """kill -9, also of one that is stopped."""
        if self.process.running:
            self.process.kill()
        elif self.process._process is not None:
            self.process.wait()

    def pause(self) -> None:
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.signal(signal.SIGCONT)

    # Its surroundings

    def cut(self, *others: SetNode) -> None:
        """Nothing gets through between it and the others any more."""
        self.gates.cut(self.id, *(other.id for other in others))

    def lose_store(self, to: Path | None = None) -> None:
        """Its way to the archive leads nowhere, or to another folder."""
        link = self.directory / "archive"
        other = link.with_name("archive.new")
        other.unlink(missing_ok=True)
        other.symlink_to(to or link)  # a link to itself fails whatever is done with it
        other.replace(link)
        self.lost_store = True

    def find_store(self) -> None:
        """It has the archive again."""
        assert self.shared is not None
        self.lose_store(self.shared)
        self.lost_store = False

    # What it says

    def facts(self) -> dict[str, Any]:
        """Of its database, flat; `role` is "" while nobody answers."""
        try:
            with local.ask(self.db, "status", timeout_s=5.0) as (answer, _):
                facts = dict(answer)
        except (WalcastError, OSError, ValueError):
            return {"role": "", "term": 0, "txid": 0, "state": "", "primary": "", "trouble": None, "discarded": []}
        databases = facts.pop("databases", None)
        return facts | databases[0] if databases else facts

    def status(self) -> dict[str, Any]:
        """As `walcast status DB --json` prints it."""
        return local_status(self.db)

    @property
    def role(self) -> str:
        return str(self.facts()["role"])

    @property
    def term(self) -> int:
        return int(self.facts()["term"])

    def is_(self, role: str, seconds: float = PATIENCE_S) -> bool:
        """Until it has the role."""
        return bool(poll(lambda: self.role == role, seconds, 0.02))

    def streams_from(self, primary: SetNode) -> bool:
        """Is it level with that primary?"""
        mine, its = self.facts(), primary.facts()
        streams = mine.get("state") == "streaming" and mine["primary"] == primary.gate
        return streams and mine["position"] == its["position"]

    def promote(self, *, force: bool = False) -> dict[str, Any]:
        """What `walcast promote` does; raises what it would print."""
        with local.ask(self.db, "promote", timeout_s=PATIENCE_S, force=force) as (facts, _):
            return dict(facts)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What it logged in all its lives."""
        return [event for event in self.process.events() if not names or event["event"] in names]

    def discarded(self) -> list[Path]:
        """The folders that keep what only it had, the oldest first."""
        folder = state_dir(self.db) / "discarded"
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    # Apps on its host

    def app(self, timeout_s: float = 0.2) -> Sql:
        """An app with a connection of its own, a process of its own."""
        return self.apps.enter_context(sql(self.db, timeout_s))

    def barrier(self, followers: int = 0, timeout: float = 2.0) -> Any:
        """As an app on its host asks for it."""
        with Primary(self.address) as primary:
            return primary.barrier(followers=followers, timeout=timeout)


@dataclass
class ReplicaSet:
    """All nodes of a set."""

    directory: Path
    nodes: dict[str, SetNode]
    gates: Gates
    lease_s: float

    def node(self, id_: str) -> SetNode:
        return self.nodes[id_]

    def find_primary(self) -> SetNode | None:
        """The one node that says now that it is the primary. They are asked one after the other, so two may say so."""
        found = [node for node in self.nodes.values() if node.process.running and node.facts()["role"] == "primary"]
        return found[0] if len(found) == 1 else None

    @property
    def primary(self) -> SetNode:
        """The primary, waited for."""
        return self.wait_primary()

    @property
    def followers(self) -> list[SetNode]:
        primary = self.primary
        return [node for node in self.nodes.values() if node is not primary]

    def wait_primary(self, *, other_than: str = "", seconds: float = PATIENCE_S) -> SetNode:
        """Until a node, another one than that, is the primary. One that is stopped is not asked."""

        def look() -> SetNode | None:
            others = [node for node in self.nodes.values() if node.id != other_than and node.process.running]
            return next((node for node in others if node.facts()["role"] == "primary"), None)

        found = poll(look, seconds, 0.02)
        assert found, f"no primary: {[(node.id, node.facts()['role']) for node in self.nodes.values()]}"
        primary: SetNode = found
        return primary

    def wait_level(self, seconds: float = PATIENCE_S) -> SetNode:
        """Until there is one primary, and all others stream from it and have what it has; nobody may be writing."""

        def level() -> SetNode | None:
            primary = self.find_primary()
            if primary is None:
                return None
            others = [node for node in self.nodes.values() if node is not primary]
            return primary if all(node.streams_from(primary) for node in others) else None

        found = poll(level, seconds, 0.05)
        assert found, f"not level: {[(n.id, n.facts()) for n in self.nodes.values()]}"
        primary: SetNode = found
        return primary

    def settle(self) -> SetNode:
        """Undo all that a test did to the set; the primary of a set that is level."""
        self.gates.heal()
        for node in self.nodes.values():
            node.apps.close()
            if node.lost_store:
                node.find_store()
            if node.process.running:
                node.resume()
            else:
                node.kill()
                node.start(ready=False)
        return self.wait_level()

    def same_bytes(self) -> bytes:
        """Stop all; the files, which must be the same byte for byte."""
        from support.writers import checkpointed

        self.wait_level()
        for node in self.nodes.values():
            node.apps.close()
            assert node.process.stop() == 0
        files = {node.id: checkpointed(node.db) for node in self.nodes.values()}
        first = next(iter(files.values()))
        for id_, data in files.items():
            if data != first:
                raise AssertionError(f"{id_} is not the same bytes as {next(iter(files))}")
        return first


@contextmanager
def replica_set(
    directory: Path,
    *,
    ids: tuple[str, ...] = IDS,
    lease_s: float = LEASE_S,
    auto: bool = True,
    archive: str | bool = True,
    flags: dict[str, list[str]] | None = None,
    environment: dict[str, str] | None = None,
    script: str | None = None,
    create: Callable[[Path], None] | None = None,
    primaries: tuple[str, ...] = (),
    names: dict[str, str] | None = None,
) -> Iterator[ReplicaSet]:
    """Ready and level; the first of `ids` is the primary.

    `archive`: True for a folder that all share, False for none, or a URL. `flags` by node. `script`: one of `support`
    that is run instead of walcast. `create` makes the database. Followers are told `primaries`, by default the first.
    `names` are those of the databases' files, by node.
    """
    with ExitStack() as stack:
        made: dict[str, SetNode] = {}

        def pid_of(id_: str) -> int | None:
            return made[id_].process.pid if id_ in made and made[id_].process.running else None

        between = stack.enter_context(gates(pid_of))
        addresses = {id_: between.open(id_) for id_ in ids}
        shared = directory / "shared" if archive is True else None
        if shared is not None:
            shared.mkdir(parents=True)
        for id_ in ids:
            folder = directory / id_
            folder.mkdir(parents=True)
            url = archive if isinstance(archive, str) else None
            if shared is not None:
                (folder / "archive").symlink_to(shared)
                url = str(folder / "archive")
            told = [addresses[other] for other in primaries or ids[:1]]
            name = (names or {}).get(id_, "app.db")
            arguments = _arguments(folder / name, id_ == ids[0], url, told)
            arguments += ["--id", id_, "--advertise", addresses[id_], "--http", LOOPBACK]
            arguments += ["--listen", LOOPBACK, "--json", "--log-format", "json"]
            arguments += ["--auto-failover", "--lease-time", str(lease_s)] if auto else []
            arguments += (flags or {}).get(id_, [])
            process = Node(arguments, folder, id_, environment or {}, script=script)
            made[id_] = SetNode(id_, folder, arguments, addresses[id_], process, between, shared, name)
            stack.callback(process.end)
            stack.callback(made[id_].apps.close)
        first, *others = made.values()
        (create or create_database)(first.db)
        first.start()
        for node in others:
            node.start(ready=False)
        found = ReplicaSet(directory, made, between, lease_s)
        found.wait_level()
        yield found


def _arguments(db: Path, primary: bool, archive: str | None, told: list[str]) -> list[str]:
    if primary:
        return ["primary", str(db), *([archive] if archive else [])]
    return ["follower", str(db), "--primary", ",".join(told), *(["--archive", archive] if archive else [])]


def create_database(path: Path) -> None:
    """With a table `t (a)` in WAL mode."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (0);")
    db.close()


def archived_bytes(url: str, directory: Path, environment: dict[str, str] | None = None) -> bytes:
    """What the archive restores to."""
    from support.nodes import walcast

    target = directory / "restored.db"
    target.unlink(missing_ok=True)
    said = walcast("restore", url, "-o", target, "--json", env=environment)
    assert said.returncode == 0, said.stderr
    return target.read_bytes()
