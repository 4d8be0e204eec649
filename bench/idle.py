"""Idle: processor time of primary and follower when nobody writes, and their requests to the object store.

The archive is a real S3 server (`rclone serve s3`) behind a proxy that counts requests. What was written last is still
compacted, by default at the next half minute, five minutes and hour; here the intervals are short, so that it is over.
"""

from __future__ import annotations

import time

from bench.harness import Run, make_database, say, wait_for_row
from bench.measure import Measure
from bench.s3 import counted, rclone_s3

SECONDS = 30
SETTLE_S = 8
CONFIG = """
dbs: [{{path: {db}, replica: {{url: "{url}"}}}}]
levels: [{{interval: 1s}}, {{interval: 2s}}]
l0-retention: 1s
"""


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    seconds = 10 if run.quick else SECONDS
    with run.stage() as folder:
        server = run.keep(rclone_s3(run, folder / "s3"))
        proxy = run.keep(counted(server.endpoint))
        db, replica = folder / "app.db", folder / "replica.db"
        make_database(db)
        url = server.url("idle", endpoint=proxy.endpoint)
        config = folder / "walcast.yml"
        config.write_text(CONFIG.format(db=db, url=url))
        primary, address = run.configured_primary(config, env=server.environment())
        follower = run.follower(replica, address, "--name", "app", "--archive", url, env=server.environment())
        writer = run.worker("paced", db, 200, 200)
        writer.go()
        wait_for_row(replica, len(writer.json()["returned_ns"]))
        time.sleep(SETTLE_S)
        before, cpu = proxy.requests, (primary.cpu_s(), follower.cpu_s())
        sleeps = [sum(n for _, n in child.threads().values()) for child in (primary, follower)]
        with run.profiled(primary, follower):
            time.sleep(seconds)
        used = [(primary.cpu_s() - cpu[0]) / seconds * 100, (follower.cpu_s() - cpu[1]) / seconds * 100]
        requests = proxy.requests - before
        woken = [
            (sum(n for _, n in child.threads().values()) - n0) / seconds
            for child, n0 in zip((primary, follower), sleeps, strict=True)
        ]
    say(f"{before} requests before; idle {requests} requests, primary {used[0]:.2f} %, follower {used[1]:.2f} %")
    return [
        Measure("processor time, primary", "% of a core", [used[0]], at_most=0.2),
        Measure("processor time, follower", "% of a core", [used[1]], at_most=0.2),
        Measure("requests to the object store", "", [requests], at_most=0, note=f"in {seconds} s; {before} before"),
        Measure("wake-ups, primary", "a second", [woken[0]], note="all threads"),
        Measure("wake-ups, follower", "a second", [woken[1]], note="all threads"),
    ]
