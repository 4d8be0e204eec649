"""Peers, where they can be run: Litestream 0.5 in follow mode, and PostgreSQL 15 streaming to a standby.

Litestream (from the development dependencies): the lag benchmark's writer and reader at its default intervals and with
every interval at 10 ms, and the flat-out app with `replicate` attached, without a follower. A reader of a Litestream
follower opens the database anew at each look, since its open connections do not see what the follower writes.

PostgreSQL (if the server's programs are in PATH or under /usr/lib/postgresql), with its defaults: commits of one
150-byte row at 200 a second in a procedural block, `clock_timestamp()` after each; on the standby a block that looks
every 0.1 ms. Its commit returns after an fsync, SQLite's here does not. Not measured where it is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.flatout import bare
from bench.harness import MIB, BenchError, Run, largest, make_database, say, wait_until
from bench.lag import PER_S, lags_ms
from bench.measure import Measure, quantile

COMMITS = 2000
FLAT_S = 5.0
PAUSE_US = 200
REOPEN = 1


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    commits = 600 if run.quick else COMMITS
    steps: list[Callable[[], list[Measure]]] = [
        lambda: litestream_lag(run, "default intervals", "", commits),
        lambda: litestream_lag(run, "10 ms everywhere", "10ms", commits),
        lambda: litestream_flat_out(run, 2.0 if run.quick else FLAT_S),
        lambda: postgres_lag(run, commits),
    ]
    measures = []
    for step in steps:
        try:
            measures += step()
        except BenchError as error:
            say(f"not measured: {error}")
    return measures


# Litestream


def litestream_config(folder: Path, db: Path, interval: str) -> Path:
    """Its configuration: an archive in a folder, and one interval for everything that has one."""
    replica = {"type": "file", "path": str(folder / "archive")}
    database: dict[str, object] = {"path": str(db), "replica": replica}
    config: dict[str, object] = {"dbs": [database]}
    if interval:
        database["monitor-interval"] = interval
        replica["sync-interval"] = interval
    path = folder / "litestream.yml"
    path.write_text(json.dumps(config))
    return path


def litestream_lag(run: Run, name: str, interval: str, commits: int) -> list[Measure]:
    """Lag of `litestream replicate` and `litestream restore -f`, and their processor time."""
    program = str(Path(sys.executable).with_name("litestream"))
    with run.stage() as folder:
        db, replica = folder / "app.db", folder / "replica.db"
        make_database(db)
        config = litestream_config(folder, db, interval)
        primary = run.start("litestream-replicate", [program, "replicate", "-config", str(config)])
        warm = run.worker("paced", db, 100, PER_S)
        warm.go()
        done = len(warm.json()["returned_ns"])
        wait_until(lambda: any((folder / "archive").rglob("*.ltx")), "Litestream replicates")
        time.sleep(2)
        follow = [program, "restore", "-f", *(["-follow-interval", interval] if interval else []), "-o", str(replica)]
        follower = run.start("litestream-follow", [*follow, (folder / "archive").as_uri()])
        wait_until(replica.exists, "Litestream follows")
        time.sleep(1)
        writer = run.worker("paced", db, commits, PER_S)
        reader = run.worker("reader", replica, done + commits, PAUSE_US, REOPEN)
        begin_s, cpu_s = time.monotonic(), primary.cpu_s() + follower.cpu_s()
        reader.go()
        writer.go()
        wrote = writer.json()
        cores = (primary.cpu_s() + follower.cpu_s() - cpu_s) / (time.monotonic() - begin_s)
        read = reader.json()
        # It has been seen to stop following, silently and for good: then what it did follow counts, and is said to.
        last, newest = done + commits, read["seen"][-1][0] if read["seen"] else 0
        note = "" if newest >= last else f"it stopped following at row {newest} of {last}"
        if note and not follower.running:
            note += f" and ended: {follower.log.read_text(errors='replace').splitlines()[-1:]}"
        lags = lags_ms(wrote["returned_ns"][: newest - wrote["first"] + 1], wrote["first"], read["seen"])
    say(f"Litestream, {name}: p50 {statistics.median(lags):.0f} ms, {cores:.2f} cores, {read['errors']} read errors")
    return [
        Measure(f"Litestream, {name}: lag, half of the commits", "ms", [statistics.median(lags)], note=note),
        Measure("… 99 of 100 commits", "ms", [quantile(lags, 0.99)]),
        Measure("… processor time, both", "cores", [cores]),
    ]


def litestream_flat_out(run: Run, seconds: float) -> list[Measure]:
    """The app that commits flat out, with `litestream replicate` attached."""
    program = str(Path(sys.executable).with_name("litestream"))
    alone = bare(run, seconds)
    with run.stage() as folder:
        db = folder / "app.db"
        make_database(db)
        config = litestream_config(folder, db, "")
        run.start("litestream-replicate", [program, "replicate", "-config", str(config)])
        time.sleep(2)
        wal = Path(f"{db}-wal")
        writer = run.worker("flat_out", db, seconds)
        with largest(wal) as sizes:
            writer.go()
            found = writer.json()
    ratio = found["commits"] / found["seconds"] / (alone["commits"] / alone["seconds"])
    return [
        Measure("Litestream, replicating: rate against the bare rate", "of 1", [ratio]),
        Measure("… the app's WAL, at its largest", "MiB", [sizes[wal] / MIB]),
        Measure("… longest commit", "ms", [found["longest_ms"]]),
    ]


# PostgreSQL


def postgres_program(name: str) -> str:
    """One of its programs."""
    places = [os.environ.get("PATH", ""), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise BenchError(f"PostgreSQL is not here: no {name}")
    return found


def free_port() -> int:
    """One that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def as_user() -> dict[str, object]:
    """PostgreSQL does not run as root: as its own user then."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise BenchError("PostgreSQL refuses root, and there is no user postgres") from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def postgres(run: Run, folder: Path, make: Callable[[Path, int], list[str]]) -> Iterator[tuple[int, Path]]:
    """A server over a data folder that `make` says how to make: its port."""
    port, data = free_port(), folder / "data"
    user = as_user()
    folder.mkdir()
    if user:
        shutil.chown(folder, user["user"], user["group"])  # type: ignore[call-overload]
    subprocess.run(make(data, port), check=True, capture_output=True, cwd=folder, **user)  # type: ignore[call-overload]
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": port, "hot_standby": "on"}
    with (data / "postgresql.auto.conf").open("a") as config:
        config.writelines(f"{name} = '{value}'\n" for name, value in options.items())
    with (folder / "log").open("wb") as log:
        command = [postgres_program("postgres"), "-D", str(data)]
        server = subprocess.Popen(command, stdout=log, stderr=log, **user)  # type: ignore[call-overload]
    try:
        wait_until(lambda: psql(port, "SELECT 1", check=False).returncode == 0, "PostgreSQL starts", every_s=0.1)
        yield port, data
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def psql(port: int, sql: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command."""
    command = [postgres_program("psql"), "-X", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-d", "postgres"]
    done = subprocess.run([*command, "-c", sql], capture_output=True, text=True, timeout=120, check=False)
    if check and done.returncode:
        raise BenchError(f"psql: {done.stderr[-1000:]}")
    return done


WRITE = """
DO $$
DECLARE
  due timestamptz := clock_timestamp();
  said text := '';
BEGIN
  FOR i IN 1..{commits} LOOP
    due := due + interval '{step_us} microseconds';
    PERFORM pg_sleep(extract(epoch FROM due - clock_timestamp()));
    INSERT INTO t VALUES (i, repeat('x', 150));
    COMMIT;
    said := said || ' ' || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  END LOOP;
  RAISE NOTICE 'at:%', said;
END $$
"""

READ = """
DO $$
DECLARE
  newest int := 0;
  now int;
  said text := '';
BEGIN
  WHILE newest < {commits} LOOP
    SELECT coalesce(max(id), 0) INTO now FROM t;
    IF now <> newest THEN
      said := said || ' ' || now || ' ' || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
      newest := now;
    END IF;
    PERFORM pg_sleep(0.0001);
  END LOOP;
  RAISE NOTICE 'at:%', said;
END $$
"""


def numbers(done: subprocess.Popen[str]) -> list[int]:
    """What a block says in its notice."""
    said = done.communicate(timeout=120)[1]
    if (found := re.search(r"at:([\d ]+)", said)) is None:
        raise BenchError(f"psql: {said[-1000:]}")
    return [int(number) for number in found[1].split()]


def postgres_lag(run: Run, commits: int) -> list[Measure]:
    """Lag to a hot standby on this machine."""
    initdb, basebackup = postgres_program("initdb"), postgres_program("pg_basebackup")
    with run.stage() as folder, contextlib.ExitStack() as servers:
        for path in (run.folder, folder):
            path.chmod(0o711)
        port, _ = servers.enter_context(
            postgres(run, folder / "one", lambda data, _: [initdb, "-D", str(data), "-U", "postgres", "-A", "trust"])
        )
        psql(port, "CREATE TABLE t (id int PRIMARY KEY, v text)")
        backup = [basebackup, "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-R", "-X", "stream", "-c", "fast"]
        standby, _ = servers.enter_context(postgres(run, folder / "two", lambda data, _: [*backup, "-D", str(data)]))
        wait_until(lambda: "streaming" in psql(port, "SELECT state FROM pg_stat_replication").stdout, "it streams")
        client = [postgres_program("psql"), "-X", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"]
        blocks = (
            (standby, READ.format(commits=commits)),
            (port, WRITE.format(commits=commits, step_us=10**6 // PER_S)),
        )
        reading, writing = (
            servers.enter_context(
                subprocess.Popen(
                    [*client, "-p", str(at), "-c", sql], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            )
            for at, sql in blocks
        )
        returned_us, seen = numbers(writing), numbers(reading)
    pairs = list(zip(seen[::2], (us * 1000 for us in seen[1::2]), strict=True))
    lags = lags_ms([us * 1000 for us in returned_us], 1, pairs)
    return [
        Measure("PostgreSQL, streaming: lag, half of the commits", "ms", [statistics.median(lags)]),
        Measure("… 99 of 100 commits", "ms", [quantile(lags, 0.99)]),
    ]
