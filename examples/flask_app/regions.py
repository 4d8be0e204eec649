"""A region: a walcast process and an app on one database file, started, killed and ended by their own handles."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from examples.flask_app.delays import Gate, Gates
from walcast.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
END_S = 6.0
LOG_LINES = 3


@dataclass(frozen=True, slots=True)
class Place:
    """`distance_ms`: one way, from the centre."""

    name: str
    slug: str
    distance_ms: int = 0


PLACES = (Place("Frankfurt", "frankfurt"), Place("Tokyo", "tokyo", 60), Place("São Paulo", "sao-paulo", 40))


class Child:
    """A process in a group of its own. `ready` is set with the first line of JSON that it prints, which is `said`; all
    else goes to its log."""

    def __init__(
        self, what: str, command: list[str], log: Path, env: dict[str, str], fds: tuple[int, ...] = ()
    ) -> None:
        self.what, self.log = what, log
        self.said: dict[str, object] = {}
        self.ready = threading.Event()
        self.was_killed = False  # by us
        # No flag of a shell's WALCAST_<FLAG> or FLASK_<KEY> may change what is started here.
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("WALCAST_", "FLASK_", "GUNICORN_"))
        }
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                env=clean | env,
                pass_fds=fds,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, name=f"hears {what}", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as out:
            for line in out:
                with suppress(ValueError):
                    self.said = self.said or json.loads(line)
                    self.ready.set()

    @property
    def group(self) -> int:
        """Its process group; valid until it has been waited for."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """For its end after `ask_to_end`, which is hastened if it takes too long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self.kill()

    def kill(self, *, wait: bool = True) -> None:
        """SIGKILL for all of its group: workers would outlive it by a second."""
        self.was_killed = True
        if self._process.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError):  # it has ended, and somebody else has waited for it
                os.killpg(self._process.pid, signal.SIGKILL)
            if wait:
                self._process.wait(END_S)

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-LOG_LINES:]) or "it said nothing"


@dataclass
class Region:
    """`first`: the one that begins as the primary."""

    place: Place
    folder: Path
    first: bool
    gates: Gates
    others: list[Region] = field(default_factory=list)
    node: Child | None = None
    app: Child | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.database = self.folder / "app.db"
        self.node_gate, self.app_gate = Gate(self.place.name, True), Gate(self.place.name, False)
        # The addresses that the other regions know.
        self.node_port, self.app_port = self.gates.open(self.node_gate), self.gates.open(self.app_gate)
        self._listening: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def url(self) -> str:
        """Where browsers reach the app of this region."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """Where other nodes reach its node."""
        return f"127.0.0.1:{self.node_port}"

    @property
    def children(self) -> list[Child]:
        return [child for child in (self.node, self.app) if child is not None]

    @property
    def alive(self) -> bool:
        """Do both of its processes run?"""
        return len(self.children) == 2 and all(child.exit_code is None for child in self.children)

    def start_node(self, archive: Path, lease_s: float) -> None:
        """With the command that it always has: what it has become meanwhile it remembers itself."""
        role = ["primary", str(self.database), str(archive)]
        if not self.first:
            others = ",".join(other.address for other in self.others)
            role = ["follower", str(self.database), "--primary", others, "--archive", str(archive)]
        flags = ["--listen", "127.0.0.1:0", "--advertise", self.address, "--id", self.place.slug, "--json"]
        flags += ["--auto-failover", "--lease-time", f"{lease_s:g}", "--app-url", f"http://127.0.0.1:{self.app_port}"]
        self.node = Child(
            f"walcast in {self.name}", [walcast_command(), *role, *flags], self.folder / "walcast.log", {}
        )

    def node_is_ready(self) -> bool:
        """Then the gate leads to it."""
        if self.node is None or not self.node.ready.is_set():
            return False
        self.gates.lead(self.node_gate, int(str(self.node.said["listen"]).rpartition(":")[2]))
        return True

    def start_app(self, settings: dict[str, str], workers: int, threads: int) -> None:
        """Under gunicorn, on a socket that is there already: nobody is refused while it starts."""
        listening = self._listening or socket.create_server(("127.0.0.1", self.port))
        command = [sys.executable, "-P", "-m", "gunicorn", "--bind", f"fd://{listening.fileno()}", "--chdir", str(ROOT)]
        command += ["--workers", str(workers), "--threads", str(threads), "--worker-class", "gthread"]
        command += ["--graceful-timeout", "1", "--no-control-socket", "examples.flask_app.app:create_app()"]
        env = {f"FLASK_{key}": value for key, value in settings.items()}
        env |= {"FLASK_REGION": self.name, "FLASK_WALCAST_DATABASE": str(self.database)}
        env |= {"FLASK_STREAMS": str(max(1, threads // 2))}
        with listening:  # from now on it is gunicorn's alone, and gone when that is killed
            fds = (listening.fileno(),)
            self.app = Child(f"the app in {self.name}", command, self.folder / "app.log", env, fds)
        self._listening = None
        self.gates.lead(self.app_gate, self.port)

    def kill(self) -> None:
        """kill -9 for everything here."""
        for child in self.children:
            child.kill(wait=False)
        for gate in (self.node_gate, self.app_gate):
            self.gates.shut(gate)
        for child in self.children:
            child.kill()
        self.node = self.app = None

    def reopen(self) -> None:
        """After a kill, before its processes are started again."""
        for gate in (self.node_gate, self.app_gate):
            self.gates.open(gate)

    def ask_to_end(self) -> None:
        """In an orderly way."""
        for child in self.children:
            child.ask_to_end()

    def wait(self) -> None:
        """After `ask_to_end`."""
        for child in self.children:
            child.wait()
        if self._listening is not None:
            self._listening.close()


def walcast_command() -> str:
    """Of the environment that this runs in."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("walcast", path=places)
    if found is None:
        raise ConfigError("there is no `walcast` command beside this python: pip install 'walcast[web]'")
    return found
