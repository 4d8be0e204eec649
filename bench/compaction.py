"""Memory and speed of a compaction: 64 files of 16 MiB, every page in four of them, into one.

In a process of its own, from a folder into a file, by the code that a primary's upkeep runs. Memory is the peak above
what the process had when everything was imported.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from bench.harness import MIB, Run, say
from bench.measure import Measure

FILES = 64
FILE_PAGES = 4096
PAGE_BYTES = 4096
ROUNDS = 3


def build(folder: Path, files: int, pages: int) -> int:
    """Level 0 of an archive: contiguous files, each with `pages` pages. Their bytes."""
    from walcast import ltx
    from walcast.archive import ltx_key
    from walcast.store.directory import DirectoryStore

    store, rng, total = DirectoryStore(folder), random.Random(1), 0
    span = files * pages // 4
    for number in range(files):
        commit_pages = span
        header = ltx.Header(
            page_size=PAGE_BYTES,
            commit_pages=commit_pages,
            min_txid=number + 2,
            max_txid=number + 2,
            timestamp_ms=number,
            flags=ltx.FLAG_NO_CHECKSUM,
        )
        data = bytearray()
        encoder = ltx.Encoder(header, data.extend)
        for pgno in sorted(rng.sample(range(1, span + 1), pages)):
            encoder.add(pgno, rng.randbytes(PAGE_BYTES // 2) + bytes(PAGE_BYTES // 2))
        encoder.finish()
        store.put(ltx_key(store, 0, number + 2, number + 2), bytes(data), timestamp_ms=number)
        total += len(data)
    return total


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    files, rounds = (8, 1) if run.quick else (FILES, ROUNDS)
    memory, speed = [], []
    with run.stage() as folder:
        size = build(folder / "archive", files, FILE_PAGES)
        say(f"{files} files, {size / MIB:.0f} MiB")
        for _ in range(rounds):
            command = [sys.executable, "-m", "bench.compaction", str(folder / "archive"), str(folder / "out")]
            child = run.start("compaction", command)
            child.line()
            before = child.memory().rss
            child.forget_peak()
            child.go()
            seconds = float(child.json(300)["seconds"])
            memory.append((child.memory().peak - before) / MIB)
            speed.append(size / seconds / 1e6)
            child.stop()
    return [
        Measure("memory above the process's own", "MiB", memory, at_most=64.0),
        Measure("read and merged", "MB/s", speed, note="compressed bytes"),
    ]


def main() -> None:
    """`python -m bench.compaction ARCHIVE OUT`"""
    from walcast.archive import list_files
    from walcast.store.directory import DirectoryStore
    from walcast_primary.archiving.compaction import compact

    store = DirectoryStore(Path(sys.argv[1]))
    files = list_files(store, [0])
    print("ready", flush=True)
    sys.stdin.readline()
    began_s = time.monotonic()
    with Path(sys.argv[2]).open("wb") as out:
        compact(store, files, out.write)
    print(json.dumps({"seconds": time.monotonic() - began_s}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
