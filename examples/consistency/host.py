"""A host: a database, the walcast process that keeps it, and the app, which answers HTTP in this process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from werkzeug.serving import WSGIRequestHandler, make_server

from examples.consistency.guestbook import guestbook
from examples.consistency.telling import PATIENCE_S, NotSeen
from walcast import local
from walcast.errors import Unavailable
from walcast.replica import Replica
from walcast_node.rehearsal.drill.processes import Process, Said
from walcast_node.rehearsal.drill.proxy import Proxies

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_request(self, *_: object) -> None:
        pass


class Host:
    """`command`: how its walcast is started, each time."""

    def __init__(self, name: str, folder: Path, network: Proxies, archive: Path) -> None:
        self.name, self.command = name, [""]
        self.folder, self.archive = folder / name, folder / name / "archive"
        self.folder.mkdir()
        self.database = self.folder / "app.db"
        self.replica = Replica(self.database)
        self.app: WSGIApplication = guestbook(name, self.database)
        self._network, self._shared = network, archive
        self._process: Process | None = None
        self._lead_archive_to(archive)
        self._server = make_server("127.0.0.1", 0, lambda *told: self.app(*told), threaded=True, request_handler=Quiet)
        self.app_port = self._server.port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __str__(self) -> str:
        return self.name

    # Its walcast process

    def start(self) -> None:
        """With the command that it always has, whatever it has become; until it is ready."""
        ready = threading.Event()

        def heard(said: Said) -> None:
            self._network.targets[self.name] = int(said["listen"].rpartition(":")[2])
            ready.set()

        self._process = Process(self.name, ["walcast_node.cli", *self.command], self.folder / "walcast.log", heard)
        if not ready.wait(PATIENCE_S):
            raise NotSeen(f"walcast in {self.name} is not ready: {' / '.join(self._process.last_lines())}")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    @contextmanager
    def held_up(self, seconds: float = PATIENCE_S) -> Iterator[None]:
        """Its walcast process stands still, so that nothing new arrives here; it goes on at the end of the block, or
        after so many seconds."""
        assert self._process is not None
        going_on = threading.Timer(seconds, self._process.signal, (signal.SIGCONT,))
        self._process.signal(signal.SIGSTOP)
        going_on.start()
        try:
            yield
        finally:
            going_on.cancel()
            self._process.signal(signal.SIGCONT)

    def close(self) -> None:
        """End all that belongs to it."""
        self.kill()
        self._server.shutdown()
        self._server.server_close()

    # Its network

    def cut_off(self) -> None:
        """Neither the other hosts nor the archive can be reached from here; apps on this host live on."""
        self._network.cut(self.name)
        self._lead_archive_to(self.archive)  # a link to itself: every use of it fails

    def heal(self) -> None:
        """Everything can be reached again."""
        self._lead_archive_to(self._shared)
        self._network.heal(self.name)

    def _lead_archive_to(self, target: Path) -> None:
        link = self.folder / "archive.new"
        link.symlink_to(target)
        link.replace(self.archive)

    # What it says

    @property
    def state(self) -> str:
        """As the file beside its database says; "" when nothing does."""
        try:
            return self.replica.state()
        except Unavailable:
            return ""

    def is_archived(self) -> bool:
        """Of a primary: is all that it has in the archive?"""
        with local.ask(self.database, "status", timeout_s=PATIENCE_S) as (facts, _):
            served = facts["databases"][0]
            return bool(served["archive"]["txid"] >= served["txid"])
