"""Two nodes, each in a network of its own, joined by a wire that is cut: run as root of a user namespace.

    unshare -rnm python failover_namespaces.py DIRECTORY

The archive is a folder; for the node that is cut off its link leads nowhere, as a store behind the same wire would.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.certs import Authority
from support.nodes import ENVIRONMENT, poll
from support.replica_set import create_database

from walcast import local
from walcast.errors import WalcastError

NODES = {"a": "10.77.0.1", "b": "10.77.0.2"}
PORT = 7420
LEASE_S = 2.0


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def inside(pid: int, *command: str) -> list[str]:
    """`command` in the network of the process."""
    return ["nsenter", "-t", str(pid), "-n", *command]


def network() -> dict[str, subprocess.Popen[bytes]]:
    """A network for each node, whose holder is a sleeping process, and a wire between the two."""
    holders = {}
    for id_ in NODES:
        holders[id_] = subprocess.Popen(["unshare", "-n", "sleep", "120"])
        pid = holders[id_].pid
        mine = Path("/proc/self/ns/net").readlink()
        assert poll(lambda pid=pid, mine=mine: Path(f"/proc/{pid}/ns/net").readlink() != mine, 5.0)
    a, b = (holder.pid for holder in holders.values())
    run("ip", "link", "add", "wire-a", "netns", str(a), "type", "veth", "peer", "name", "wire-b", "netns", str(b))
    for id_, address in NODES.items():
        pid = holders[id_].pid
        run(*inside(pid, "ip", "address", "add", f"{address}/24", "dev", f"wire-{id_}"))
        for device in ("lo", f"wire-{id_}"):
            run(*inside(pid, "ip", "link", "set", device, "up"))
    return holders


def facts(db: Path) -> dict[str, Any]:
    try:
        with local.ask(db, "status", timeout_s=5.0) as (answer, _):
            databases = answer.pop("databases", None)
            return {**answer, **databases[0]} if databases else dict(answer)
    except (WalcastError, OSError, ValueError):
        return {}


def main() -> None:
    directory = Path(sys.argv[1])
    shared = directory / "shared"
    shared.mkdir()
    authority = Authority(directory / "pki")
    holders = network()
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for id_, address in NODES.items():
            folder = directory / id_
            folder.mkdir()
            (folder / "archive").symlink_to(shared)
            if id_ == "a":
                create_database(folder / "app.db")
                what = ["primary", str(folder / "app.db"), str(folder / "archive")]
            else:
                what = ["follower", str(folder / "app.db"), "--primary", f"{NODES['a']}:{PORT}"]
                what += ["--archive", str(folder / "archive")]
            what += ["--listen", f"{address}:{PORT}", "--id", id_, "--auto-failover", "--lease-time", str(LEASE_S)]
            cert, key = authority.files(id_, hosts=(address,))
            what += ["--tls-ca", str(authority.ca), "--tls-cert", str(cert), "--tls-key", str(key)]
            command = inside(holders[id_].pid, sys.executable, "-m", "walcast_node.cli", *what, "--json")
            with (directory / f"{id_}.err").open("wb") as err:
                nodes.append(subprocess.Popen(command, stderr=err, stdout=err, env=ENVIRONMENT))
        a, b = (directory / id_ / "app.db" for id_ in NODES)
        assert poll(lambda: facts(b).get("state") == "streaming", 20.0), (facts(a), facts(b))
        run(*inside(holders["a"].pid, "ip", "link", "set", "wire-a", "down"))
        link = a.with_name("archive")
        link.unlink()
        link.symlink_to(link)
        since_s = time.monotonic()
        assert poll(lambda: facts(b).get("role") == "primary", 20.0), (facts(a), facts(b))
        seconds = time.monotonic() - since_s
        assert facts(a)["role"] == "fenced", facts(a)
        run(*inside(holders["a"].pid, "ip", "link", "set", "wire-a", "up"))
        link.unlink()
        link.symlink_to(shared)
        back = poll(lambda: facts(a).get("state") == "streaming" and facts(a)["txid"] == facts(b)["txid"], 20.0)
        assert back, (facts(a), facts(b))
        print(json.dumps({"failover_s": round(seconds, 2)}))
    finally:
        for process in (*nodes, *holders.values()):
            process.kill()
            process.wait()


main()
