"""One primary at a time: one that cannot renew its lease cannot be written to."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from examples.consistency.host import Host
from examples.consistency.stage import Stage
from examples.consistency.telling import Tell, until


@dataclass(frozen=True, slots=True)
class Row:
    """Committed between two moments, in seconds."""

    host: Host
    number: int
    after_s: float
    before_s: float


@contextmanager
def writing(*hosts: Host) -> Iterator[list[Row]]:
    """On each host an app tries to write a row, again and again: the rows of all that were committed."""
    committed: list[Row] = []
    over = threading.Event()

    def write(host: Host) -> None:
        with closing(sqlite3.connect(host.database, timeout=0.05, isolation_level=None)) as app:
            while not over.wait(0.01):
                after_s = time.monotonic()
                try:
                    found = app.execute("INSERT INTO post (text) VALUES (?) RETURNING id", (host.name,)).fetchone()
                    committed.append(Row(host, found[0], after_s, time.monotonic()))
                except sqlite3.OperationalError:
                    pass  # database is locked

    threads = [threading.Thread(target=write, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    try:
        yield committed
    finally:
        over.set()
        for thread in threads:
            thread.join()


def without_a_lease(tell: Tell) -> None:
    """Somebody promotes a follower by hand, since the primary cannot be reached."""
    with Stage(count=2, lease_s=None) as stage:
        old, new = stage.hosts
        with writing(old, new) as rows:
            until(lambda: rows, f"a row at {old}")
            old.cut_off()
            stage.walcast("promote", str(new.database), "--force")
            until(lambda: sum(row.host is new for row in rows) > 10 and rows[-1].host is old, "two that write")
    numbers = [{row.number for row in rows if row.host is host} for host in (old, new)]
    twice = len(numbers[0] & numbers[1])
    tell.without(twice > 0, f"no lease: {old} and {new} both take writes, and give {twice} numbers twice")


def show(stage: Stage, tell: Tell) -> None:
    """The primary's host loses its network, to the other hosts and to the archive. Its app lives on."""
    without_a_lease(tell)
    old = stage.primary
    with writing(*stage.hosts) as rows:
        until(lambda: rows, f"a row at {old}")
        old.cut_off()
        cut_s = time.monotonic()
        until(lambda: sum(row.host is not old for row in rows) > 10, "writes elsewhere")
    ended_s = max(row.after_s for row in rows if row.host is old) - cut_s
    first = min((row for row in rows if row.host is not old), key=lambda row: row.before_s)
    begun_s = first.before_s - cut_s
    tell.given(
        ended_s < begun_s, f"a lease: {old} takes writes for {ended_s:.1f} s, {first.host} from {begun_s:.1f} s on"
    )
    old.heal()
