"""Bootstrap of 1 GiB from S3 (a local server), against a plain parallel download of the same objects.

The archive is walcast's own: a snapshot and some files after it. The download is boto3's, with as many parts at a time
as a restore takes, onto the same disk, in a process that has imported boto3 already. Against it, in turn: the bootstrap
alone (`from_archive`, in such a process too), and a real `walcast follower` from its start until it is connected,
which includes starting Python and reading the whole replica once. `litestream restore` of the same archive is the peer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from bench.harness import GIB, BenchError, Run, make_database, say, wait_until
from bench.measure import Measure
from bench.s3 import BUCKET, S3Server, rclone_s3

PAGES = GIB // 4096
ROUNDS = 3
PARALLELISM = 4
PREFIX = "big"


def archived(address: str) -> bool:
    """Has the archive what the primary has?"""
    import grpc

    from walcast.rpc import replication_pb2 as pb
    from walcast.rpc import replication_pb2_grpc as rpc

    with grpc.insecure_channel(address) as channel:
        (database,) = rpc.ReplicationStub(channel).Status(pb.StatusRequest(), timeout=10).databases
    return bool(database.archive.txid == database.position.txid)


def make_archive(run: Run, folder: Path, server: S3Server, pages: int) -> tuple[Path, str]:
    """A primary that serves a database and has archived it: the database and the primary's address."""
    db = folder / "app.db"
    make_database(db)
    builder = run.worker("build", db, pages)
    builder.go()
    builder.json(300)
    began_s = time.monotonic()
    _, address = run.primary(db, server.url(PREFIX), env=server.environment())
    wait_until(lambda: archived(address), "the snapshot is archived", 300)
    say(f"snapshot archived in {time.monotonic() - began_s:.1f} s")
    writer = run.worker("paced", db, 300, 100)
    writer.go()
    writer.json()
    wait_until(lambda: archived(address), "the rest is archived")
    return db, address


def timed(run: Run, server: S3Server, what: str, target: Path) -> float:
    """Seconds for one of the steps below, in a process of its own."""
    command = [sys.executable, "-m", "bench.bootstrap", what, server.endpoint, str(target)]
    child = run.start(what, command, env=server.environment())
    child.line()
    with run.profiled(*([child] if what == "bootstrap" else [])):
        child.go()
        return float(child.json(300)["seconds"])


def litestream(server: S3Server, target: Path) -> float:
    """Seconds for a restore by the real Litestream."""
    url = f"s3://{BUCKET}/{PREFIX}?endpoint={server.endpoint}&region=us-east-1&force-path-style=true"
    program = Path(sys.executable).with_name("litestream")
    command = [program, "restore", "-o", target, url]
    began_s = time.monotonic()
    done = subprocess.run(command, env=server.environment(), capture_output=True, timeout=300, check=False)
    if done.returncode:
        raise BenchError(f"litestream restore: {done.stderr.decode(errors='replace')}")
    return time.monotonic() - began_s


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    pages, rounds = (PAGES // 8, 1) if run.quick else (PAGES, ROUNDS)
    plain, alone, whole, peer = [], [], [], []
    with run.stage() as folder:
        server = run.keep(rclone_s3(run, folder / "s3"))
        _, address = make_archive(run, folder, server, pages)
        size = sum(f.stat().st_size for f in server.folder.rglob("*.ltx"))
        say(f"archive of {size / GIB:.2f} GiB for {pages * 4096 / GIB:.2f} GiB")
        for number in range(rounds):
            with run.stage() as target:
                plain.append(timed(run, server, "download", target / "download"))
            with run.stage() as target:
                alone.append(timed(run, server, "bootstrap", target / "replica.db"))
            with run.stage() as target:
                began_s = time.monotonic()
                arguments = ("--name", "app", "--archive", server.url(PREFIX))
                run.follower(target / "replica.db", address, *arguments, env=server.environment())
                whole.append(time.monotonic() - began_s)
            with run.stage() as target:
                peer.append(litestream(server, target / "litestream.db"))
            say(
                f"round {number + 1}: download {plain[-1]:.2f} s, bootstrap {alone[-1]:.2f} s, "
                f"follower {whole[-1]:.2f} s, Litestream {peer[-1]:.2f} s"
            )

    def ratio(seconds: list[float]) -> list[float]:
        return [a / b for a, b in zip(seconds, plain, strict=True)]

    note = f"{size / GIB:.2f} GiB of objects"
    return [
        Measure("bootstrap against the download", "of 1", ratio(alone), at_most=1.5),
        Measure("follower's start until it is connected, against the download", "of 1", ratio(whole), at_most=1.5),
        Measure("Litestream's restore against the download", "of 1", ratio(peer)),
        Measure("download", "s", plain, note=note),
        Measure("bootstrap", "s", alone),
        Measure("follower's start until it is connected", "s", whole),
        Measure("Litestream's restore", "s", peer),
    ]


def _download(server: S3Server, target: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    client = server.client(16)
    config = TransferConfig(max_concurrency=PARALLELISM, multipart_chunksize=4 << 20)
    target.mkdir()
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=PREFIX)["Contents"]
    for number, item in enumerate(listed):
        client.download_file(BUCKET, item["Key"], str(target / str(number)), Config=config)


def _bootstrap(server: S3Server, target: Path) -> None:
    from walcast.statedir import StateDir
    from walcast.store import open_store
    from walcast_follower.bootstrap.bootstrap import from_archive

    state = StateDir(target)
    if not from_archive(open_store(server.url(PREFIX)), target, state.path):
        raise ValueError("the archive is empty")


def main() -> None:
    """`python -m bench.bootstrap download|bootstrap ENDPOINT TARGET`"""
    import boto3  # noqa: F401 - what a process needs once is not what is measured
    import numpy as np  # noqa: F401

    import walcast_follower.bootstrap.bootstrap  # noqa: F401

    server = S3Server(sys.argv[2], Path(), None)  # type: ignore[arg-type]
    print("ready", flush=True)
    sys.stdin.readline()
    began_s = time.monotonic()
    {"download": _download, "bootstrap": _bootstrap}[sys.argv[1]](server, Path(sys.argv[3]))
    print(json.dumps({"seconds": time.monotonic() - began_s}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
