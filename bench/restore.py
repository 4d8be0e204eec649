"""Restore of 1 GiB with 1,000 raw files on top from S3 (a local server), against a plain parallel download.

Two archives of one database: a snapshot and 1,000 files of level 0, and the same compacted as a primary does it: levels
1 and 2, the last raw files. LZ4 halves the pages; each raw file changes 32 of them. In turn, each in a process of its
own that has imported what it needs: a restore; and a download of the same bytes through the same store (pieces of
4 MiB, whole small files, 16 requests at once, as the restore) into files on the same disk, which nobody syncs. Beside
them the commands `walcast restore` and `litestream restore` (a Go program) from the start of their processes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness import GIB, MIB, BenchError, Run, say
from bench.measure import Measure
from bench.s3 import BUCKET, S3Server, rclone_s3
from bench.workers import text

PAGE_BYTES = 4096
PAGES = GIB // PAGE_BYTES
RAW_FILES = 1000
RAW_PAGES = 32
KINDS = 997  # different page contents
GROUPS = ((1, 30), (2, 10))  # level, files of the one below in one of it
ROUNDS = 5
REQUESTS = 16
PIECE_BYTES = 4 << 20
ARCHIVES = ("raw", "compacted")


def build(folder: Path, pages: int, raw_files: int) -> None:
    """Both archives, as the S3 server keeps them: a folder each."""
    from walcast.checksum import PageChecksums
    from walcast.ltx import FLAG_NO_CHECKSUM, Encoder, Header

    rng = random.Random(1)
    contents = [text(PAGE_BYTES, seed) for seed in range(KINDS)]
    which = [pgno % KINDS for pgno in range(pages + 1)]
    sums = PageChecksums.scan(PAGE_BYTES, ((pgno, contents[which[pgno]]) for pgno in range(1, pages + 1)))

    def write(level: int, low: int, high: int, pgnos: list[int]) -> None:
        header = Header(
            page_size=PAGE_BYTES,
            commit_pages=pages,
            min_txid=low,
            max_txid=high,
            timestamp_ms=1_750_000_000_000 + high * 1000,
            flags=FLAG_NO_CHECKSUM,
            database_checksum=sums.database,
            term=1,
        )
        path = folder / "raw" / f"{level:04x}" / f"{low:016x}-{high:016x}.ltx"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            encoder = Encoder(header, file.write)
            for pgno in pgnos:
                encoder.add(pgno, contents[which[pgno]])
            encoder.finish()
        os.utime(path, (header.timestamp_ms / 1000, header.timestamp_ms / 1000))

    write(9, 1, 1, list(range(1, pages + 1)))
    for txid in range(2, raw_files + 2):
        pgnos = sorted(rng.sample(range(1, pages + 1), RAW_PAGES))
        _change(pgnos, which, contents, sums, pages)
        write(0, txid, txid, pgnos)
    _compact(folder)


def _change(pgnos: list[int], which: list[int], contents: list[bytes], sums: Any, pages: int) -> None:
    import numpy as np

    from walcast.checksum import page_checksum

    for pgno in pgnos:
        which[pgno] = (which[pgno] + 1) % KINDS
    values = [page_checksum(pgno, contents[which[pgno]]) for pgno in pgnos]
    sums.apply(np.array(pgnos, np.uint32), np.array(values, np.uint64), pages)


def _compact(folder: Path) -> None:
    """The raw archive's files in levels; of a level, those stay that are in no file of the next one."""
    from walcast.archive import ArchiveFile, list_files
    from walcast.store.directory import DirectoryStore
    from walcast_primary.archiving.compaction import compact

    class Layout(DirectoryStore):
        def level_prefix(self, level: int) -> str:
            return f"{level:04x}/"

    store = Layout(folder / "raw")
    target = folder / "compacted"
    files = list_files(store)
    below: list[ArchiveFile] = [file for file in files if file.level == 0]
    snapshot = next(file for file in files if file.level == 9)
    (target / "0009").mkdir(parents=True)
    (target / snapshot.key).hardlink_to(folder / "raw" / snapshot.key)
    out = Layout(target)
    for level, size in GROUPS:
        made: list[ArchiveFile] = []
        whole = len(below) // size * size
        for group in (below[at : at + size] for at in range(0, whole, size)):
            data = bytearray()
            compact(store if level == 1 else out, group, data.extend)
            low, high = group[0].min_txid, group[-1].max_txid
            key = f"{level:04x}/{low:016x}-{high:016x}.ltx"
            out.put(key, bytes(data), timestamp_ms=group[-1].timestamp_ms)
            made.append(ArchiveFile(level, low, high, len(data), group[-1].timestamp_ms, key))
        if level == 1:
            for file in below[whole:]:
                out.put(file.key, store.get(file.key), timestamp_ms=file.timestamp_ms)
        else:
            out.delete([file.key for file in below[:whole]])
        below = made


def steps(run: Run, server: S3Server, archive: str, target: Path) -> Iterator[tuple[str, Path, float]]:
    """One round: what was measured, what it made, seconds."""
    for what in ("download", "restore"):
        command = [sys.executable, "-m", "bench.restore", what, server.url(archive), str(target / what)]
        child = run.start(what, command, env=server.environment())
        child.line()
        with run.profiled(*([child] if what == "restore" else [])):
            child.go()
            yield what, target / what, float(child.json(300)["seconds"])
        child.stop()
    url = f"s3://{BUCKET}/{archive}?endpoint={server.endpoint}&region=us-east-1&force-path-style=true"
    program = str(Path(sys.executable).with_name("litestream"))
    commands = {
        "walcast restore": [sys.executable, "-m", "walcast_node.cli", "restore", server.url(archive)],
        "litestream restore": [program, "restore", url],
    }
    for what, command in commands.items():
        output = target / f"{what}.db"
        began_s = time.monotonic()
        whole = [*command[:-1], "-o", str(output), command[-1]]
        done = subprocess.run(whole, env=server.environment(), capture_output=True, timeout=300, check=False)
        seconds = time.monotonic() - began_s
        if done.returncode:
            raise BenchError(f"{what}: {done.stderr.decode(errors='replace')}")
        yield what, output, seconds


def one_round(run: Run, server: S3Server, archive: str, times: dict[str, list[float]], *, compare: bool) -> None:
    """Measure all, each on a disk that has come to rest; with `compare` see that they made the same."""
    made: dict[str, str] = {}
    with run.stage() as target:
        for what, output, seconds in steps(run, server, archive, target):
            times.setdefault(what, []).append(seconds)
            if output.is_dir():
                shutil.rmtree(output)
            else:
                if compare:
                    with output.open("rb") as file:
                        made[what] = hashlib.file_digest(file, "sha1").hexdigest()
                output.unlink()
            os.sync()
    if len(set(made.values())) > 1:
        raise BenchError(f"not the same database: {made}")


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    pages, rounds = (PAGES // 8, 1) if run.quick else (PAGES, ROUNDS)
    raw_files = RAW_FILES // 4 if run.quick else RAW_FILES
    measures: list[Measure] = []
    with run.stage() as folder:
        server = run.keep(rclone_s3(run, folder / "s3"))
        build(server.folder / BUCKET, pages, raw_files)
        for archive in ARCHIVES:
            objects = list((server.folder / BUCKET / archive).rglob("*.ltx"))
            size = sum(file.stat().st_size for file in objects)
            note = f"{len(objects):,} objects, {size / MIB:,.0f} MiB"
            times: dict[str, list[float]] = {}
            for number in range(rounds):
                one_round(run, server, archive, times, compare=number == 0)
                line = ", ".join(f"{what} {seconds[-1]:.2f} s" for what, seconds in times.items())
                say(f"{archive}, round {number + 1}: {line}")
            measures += _measures(archive, times, note)
    return measures


def _measures(archive: str, times: dict[str, list[float]], note: str) -> list[Measure]:
    def ratio(a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(times[a], times[b], strict=True)]

    commands = ratio("litestream restore", "walcast restore")
    return [
        Measure(
            f"{archive}: restore against the download", "of 1", ratio("restore", "download"), at_most=1.25, note=note
        ),
        Measure(f"{archive}: Litestream's command against ours", "of 1", commands, at_least=3.0),
        Measure(f"{archive}: Litestream's command against our restore", "of 1", ratio("litestream restore", "restore")),
        *(Measure(f"{archive}: {what}", "s", seconds) for what, seconds in times.items()),
    ]


def _download(url: str, target: Path) -> None:
    """The same bytes with nothing done to them."""
    from concurrent.futures import ThreadPoolExecutor

    from walcast.archive import list_files, plan_restore
    from walcast.store import open_store

    target.mkdir()
    with open_store(url) as store, ThreadPoolExecutor(REQUESTS) as pool:
        plan = plan_restore(list_files(store))
        handles = [os.open(target / str(number), os.O_RDWR | os.O_CREAT) for number in range(len(plan))]

        def piece(number: int, start: int) -> None:
            os.pwrite(handles[number], store.get(plan[number].key, start, PIECE_BYTES), start)

        jobs = [(n, start) for n, file in enumerate(plan) for start in range(0, file.size, PIECE_BYTES)]
        for done in [pool.submit(piece, *job) for job in jobs]:
            done.result()
        for handle in handles:
            os.close(handle)


def _restore(url: str, target: Path) -> None:
    from walcast.restore import restore
    from walcast.store import open_store

    with open_store(url) as store:
        restore(store, target)


def main() -> None:
    """`python -m bench.restore download|restore URL TARGET`"""
    import boto3  # noqa: F401 - what a process needs once is not what is measured

    import walcast.restore
    import walcast.store.s3  # noqa: F401

    print("ready", flush=True)
    sys.stdin.readline()
    began_s = time.monotonic()
    {"download": _download, "restore": _restore}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
    print(json.dumps({"seconds": time.monotonic() - began_s}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
