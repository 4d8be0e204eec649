"""The nodes of a local drill: a `walcast` process each, a proxy in front, and a way of its own to the archive."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from walcast.store import DirectorySpec, S3Spec, StoreSpec
from walcast_node.rehearsal.drill.processes import Process, Said
from walcast_node.rehearsal.drill.proxy import Proxies

NAMES = ("a", "b", "c")
DATABASE = "app.db"
NOT_YET = "not started"


def identity(name: str) -> str:
    """The node's id."""
    return f"drill-{name}"


@dataclass(frozen=True, slots=True)
class Archive:
    """Where the set's archive is: of this drill alone, below what was given."""

    spec: StoreSpec

    @classmethod
    def below(cls, spec: StoreSpec, name: str) -> Archive:
        """A place for `name` in an archive."""
        if isinstance(spec, S3Spec):
            return cls(replace(spec, prefix=f"{spec.prefix}/{name}".strip("/")))
        return cls(DirectorySpec(spec.path.absolute() / name))


class Node:
    """One node; the `first` is started as the primary, always. `absent` says why its process cannot act: not started,
    dead, stopped, and `absent_s` since when; "" while it runs."""

    def __init__(
        self, name: str, folder: Path, proxies: Proxies, archive: Archive, lease_s: float, *, first: bool
    ) -> None:
        self.name = name
        self.folder = folder / name
        self.database = self.folder / DATABASE
        self.absent = NOT_YET
        self.absent_s = 0.0
        self.cut = False
        self.ready: Said | None = None
        self.process: Process | None = None
        self._root = folder
        self._proxies = proxies
        self._archive = archive
        self._lease_s = lease_s
        self._first = first
        self.folder.mkdir(exist_ok=True)
        if isinstance(archive.spec, DirectorySpec):
            self._point(archive.spec.path)

    @property
    def id(self) -> str:
        return identity(self.name)

    @property
    def address(self) -> str:
        """Where the others reach it."""
        return f"127.0.0.1:{self._proxies.ports[self.name]}"

    @property
    def listen(self) -> str:
        """Where whoever is on the same machine reaches it."""
        assert self.ready is not None
        return str(self.ready["listen"])

    @property
    def _link(self) -> Path:
        return self._root / f"archive-of-{self.name}"

    def _point(self, target: Path) -> None:
        fresh = self._link.with_name(f".{self._link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(self._link)

    def start(self) -> None:
        """Begin, or begin again; `ready` is set when it is."""
        archive, environment = str(self._link), {}
        if isinstance(self._archive.spec, S3Spec):
            proxy = f"http://127.0.0.1:{self._proxies.http_ports[self.name]}"
            environment = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "", "no_proxy": ""}
            archive = self._archive.spec.url
        others = ",".join(f"127.0.0.1:{port}" for name, port in self._proxies.ports.items() if name != self.name)
        role = ["primary", str(self.database), archive]
        if not self._first:
            role = ["follower", str(self.database), "--primary", others, "--archive", archive]
        flags = ["--listen", "127.0.0.1:0", "--advertise", self.address, "--id", self.id, "--auto-failover"]
        flags += ["--lease-time", f"{self._lease_s:g}", "--json", "--log-format", "json"]
        self.ready, self.absent = None, ""
        self.process = Process(
            self.name, ["walcast_node.cli", *role, *flags], self._root / f"{self.name}.log", self._heard, environment
        )

    def _heard(self, said: Said) -> None:
        if "listen" in said:
            self._proxies.targets[self.name] = int(said["listen"].rpartition(":")[2])
            self.ready = said

    def kill(self, then: Callable[[], object]) -> None:
        """kill -9, and what is to happen at the same moment."""
        assert self.process is not None
        self.absent, self.absent_s = "dead", time.monotonic()
        self.process.signal(signal.SIGKILL)
        then()
        self.process.kill()
        self._proxies.targets.pop(self.name, None)

    def stop(self) -> None:
        """SIGSTOP."""
        assert self.process is not None
        self.absent, self.absent_s = "stopped", time.monotonic()
        self.process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.signal(signal.SIGCONT)
        self.absent = ""

    def cut_off(self) -> None:
        """Nothing passes between it and the others, nor the archive."""
        self._proxies.cut(self.name)
        if isinstance(self._archive.spec, DirectorySpec):
            nothing = self._root / "unreachable"
            nothing.touch()
            self._point(nothing / "archive")
        self.cut = True

    def heal(self) -> None:
        """Everything passes again."""
        if isinstance(self._archive.spec, DirectorySpec):
            self._point(self._archive.spec.path)
        self._proxies.heal(self.name)
        self.cut = False

    def end(self) -> None:
        """In an orderly way where it can still be had."""
        if self.process is not None and self.process.exit_code is None:
            self.process.signal(signal.SIGCONT)
            self.process.finish(by_signal=True)
        self.absent = self.absent or "dead"

    def log_size(self) -> int:
        """How much it has logged, to read on from there."""
        return (self._root / f"{self.name}.log").stat().st_size

    def events(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """What it logged after so many bytes."""
        with (self._root / f"{self.name}.log").open("rb") as log:
            log.seek(after)
            for line in log:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue
