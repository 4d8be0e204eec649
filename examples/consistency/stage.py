"""The stage for all examples: hosts on this machine, each with a database, a walcast process and the app.

`frankfurt` begins as the primary, the others follow it. Between hosts lies a network that can be cut; what they share
besides is the archive, a folder.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from examples.consistency.guestbook import SCHEMA, guestbook
from examples.consistency.host import Host
from examples.consistency.telling import PATIENCE_S, NotSeen, until
from walcast.errors import StaleReplica
from walcast.primary import Primary
from walcast_node.rehearsal.drill.proxy import Proxies

NAMES = ("frankfurt", "tokyo", "lima")
LEASE_S = 1.0


@dataclass
class Stage:
    """`lease_s`: None for a set without automatic failover. Everything is in a temporary folder."""

    count: int = len(NAMES)
    lease_s: float | None = LEASE_S
    hosts: list[Host] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="consistency-")))
        names = NAMES[: self.count]
        network = Proxies({name: f"host-{name}" for name in names})
        network.start()
        self._stack.callback(network.close)
        archive = folder / "archive"
        archive.mkdir()
        with self._stack.pop_all() as stack:
            for name in names:
                self.hosts.append(Host(name, folder, network, archive))
                stack.callback(self.hosts[-1].close)
            for host in self.hosts:
                host.command = self._command(host, network.ports)
            with closing(sqlite3.connect(self.hosts[0].database)) as db:
                db.executescript(SCHEMA)
            for host in self.hosts:
                host.start()
            self.settle()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _command(self, host: Host, ports: dict[str, int]) -> list[str]:
        role = ["primary", str(host.database), str(host.archive)]
        if host is not self.hosts[0]:
            others = ",".join(f"127.0.0.1:{port}" for name, port in ports.items() if name != host.name)
            role = ["follower", str(host.database), "--archive", str(host.archive), "--primary", others]
        flags = ["--listen", "127.0.0.1:0", "--advertise", f"127.0.0.1:{ports[host.name]}", "--id", f"host-{host}"]
        flags += ["--app-url", f"http://127.0.0.1:{host.app_port}", "--json"]
        flags += ["--auto-failover", "--lease-time", str(self.lease_s)] if self.lease_s else []
        return [*role, *flags]

    def walcast(self, *arguments: str) -> None:
        """`walcast ARGUMENTS`, to its end."""
        self.run("walcast_node.cli", *arguments)

    def run(self, module: str, *arguments: str) -> None:
        """`python -m MODULE ARGUMENTS`, to its end."""
        subprocess.run(
            [sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S
        )

    # Who is what

    @property
    def primary(self) -> Host:
        """The one that says so, waited for."""
        until(lambda: any(host.state == "primary" for host in self.hosts), "a primary")
        return next(host for host in self.hosts if host.state == "primary")

    @property
    def edges(self) -> list[Host]:
        """All others."""
        primary = self.primary
        return [host for host in self.hosts if host is not primary]

    def serve(self, **options: Any) -> None:
        """The app on every host, with these options of the middleware."""
        for host in self.hosts:
            host.app = guestbook(host.name, host.database, **options)

    def settle(self) -> None:
        """Until there is one primary, and all others stream from it and have what it has."""

        def is_one_set() -> bool:
            return sorted(host.state for host in self.hosts) == ["primary", *["streaming"] * (self.count - 1)]

        until(is_one_set, "one primary, and all others streaming")
        self.wait_for(*self.edges)

    def wait_for(self, *edges: Host) -> None:
        """Until they have all that was committed at the primary."""
        token = Primary(self.primary.database).barrier()
        for edge in edges:
            try:
                edge.replica.wait_for(token, PATIENCE_S)
            except StaleReplica as error:
                raise NotSeen(str(error)) from error
