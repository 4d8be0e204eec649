"""Memory of primary and of follower: a database of 1 GiB under light writing, and one transaction of 1 GiB.

Steady: resident memory after the follower's bootstrap and some seconds of 50 commits a second. The peak is the kernel's
high-water mark (VmHWM), reset before each part. The one of the bootstrap informs.
"""

from __future__ import annotations

import time

from bench.harness import GIB, MIB, Run, make_database, say, wait_for_row
from bench.measure import Measure

PAGES = GIB // 4096


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    pages = PAGES // 8 if run.quick else PAGES
    with run.stage() as folder:
        db, replica = folder / "app.db", folder / "replica.db"
        make_database(db)
        builder = run.worker("build", db, pages)
        builder.go()
        last = builder.json(300)["last"]
        primary, address = run.primary(db)
        began_s = time.monotonic()
        follower = run.follower(replica, address, "--name", "app")
        wait_for_row(replica, last)
        both = (primary, follower)
        bootstrap = [child.memory().peak / MIB for child in both]
        say(
            f"bootstrap from the primary: {time.monotonic() - began_s:.1f} s, at most {bootstrap[0]:.0f} and "
            f"{bootstrap[1]:.0f} MiB"
        )
        for child in both:
            child.forget_peak()
        steady: tuple[list[float], list[float]] = ([], [])
        for _ in range(3):
            writer = run.worker("paced", db, 100, 50)
            writer.go()
            last += len(writer.json()["returned_ns"])
            wait_for_row(replica, last)
            for child, samples in zip(both, steady, strict=True):
                samples.append(child.memory().rss / MIB)
        anonymous = [child.memory().anonymous / MIB for child in both]
        for child in both:
            child.forget_peak()
        writer = run.worker("rewrite", db)
        with run.profiled(*both):
            began_s = time.monotonic()
            writer.go()
            wrote = writer.json(300)
            wait_for_row(replica, wrote["last"], 300)
            seconds = time.monotonic() - began_s
        peaks = [child.memory().peak / MIB for child in both]
        say(f"one transaction of {pages:,} pages: {wrote['seconds']:.1f} s to write, {seconds:.1f} s to apply")
    return [
        Measure("steady, primary", "MiB", steady[0], at_most=128),
        Measure("steady, follower", "MiB", steady[1], at_most=128),
        Measure("one transaction of 1 GiB, primary, peak", "MiB", [peaks[0]], at_most=256),
        Measure("one transaction of 1 GiB, follower, peak", "MiB", [peaks[1]], at_most=256),
        Measure(
            "… until it was applied, from its beginning", "s", [seconds], note=f"{wrote['seconds']:.1f} s to write"
        ),
        Measure("steady, primary, anonymous memory only", "MiB", [anonymous[0]]),
        Measure("steady, follower, anonymous memory only", "MiB", [anonymous[1]]),
        Measure("bootstrap from the primary, primary, peak", "MiB", [bootstrap[0]]),
        Measure("bootstrap from the primary, follower, peak", "MiB", [bootstrap[1]]),
    ]
