"""Capture decode: WAL bytes → grouped, checksummed transactions, without compression and without writing.

A real WAL, read from the page cache in the batches that capture uses: frames viewed as an array, grouped to the last
version of each page, the checksum of each of those pages, the rolling database checksum. Bytes are WAL bytes. Three
mixes: one row a commit (hot pages, what an app that commits flat out makes), updates of random rows in small
transactions, and a bulk load (every page once, the worst there is: nothing can be left out).
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import numpy as np

from bench.harness import Run, say
from bench.measure import Measure
from bench.workers import ROW_BYTES, text
from walcast.checksum import PageChecksums, page_checksum
from walcast.dbfiles import DatabaseFiles
from walcast_primary.capture import capture
from walcast_primary.capture.frame_groups import group

ROUNDS = 5
FRAMES = 40_000


def _write(db: sqlite3.Connection, mix: str, frames: int) -> None:
    """About `frames` frames of a mix."""
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    row = text(ROW_BYTES, 1)
    if mix == "hot":
        db.executemany("INSERT INTO t (v) VALUES (?)", ((row,) for _ in range(frames)))
    elif mix == "bulk":
        page = text(3900, 1)
        for _ in range(frames // 1000):
            db.execute("BEGIN")
            db.executemany("INSERT INTO t (v) VALUES (?)", ((page,) for _ in range(1000)))
            db.execute("COMMIT")
    else:
        count, rows = 20_000, [text(ROW_BYTES, seed) for seed in range(64)]  # the same bytes would not be written
        db.execute("BEGIN")
        db.executemany("INSERT INTO t (v) VALUES (?)", ((row,) for _ in range(count)))
        db.execute("COMMIT")
        for i in range(frames // 10):
            db.execute("BEGIN")
            db.executemany(
                "UPDATE t SET v = ? WHERE id = ?", ((rows[i % 64], (i * 10 + j) * 7919 % count) for j in range(10))
            )
            db.execute("COMMIT")


def decode(files: DatabaseFiles, page_size: int, mx_frame: int, buffer: bytearray) -> tuple[int, int]:
    """Do what `walcast_primary.capture.capture` does with `mx_frame` frames, up to the encoder; return the number of
    transactions and of pages kept."""
    checksums, view, frame_size = PageChecksums(page_size), memoryview(buffer), 24 + page_size
    at = transactions = pages = 0
    while at < mx_frame:
        count = min(mx_frame - at, len(buffer) // frame_size)
        frames = files.read_frames(at + 1, count, page_size, buffer)
        found = group(frames["pgno"].astype(np.uint32), frames["commit"].astype(np.uint32))
        if found is None:
            raise ValueError("a transaction larger than a batch")
        sums = np.empty(len(found.pgnos), np.uint64)
        for i, (pgno, frame) in enumerate(zip(found.pgnos.tolist(), found.frames.tolist(), strict=True)):
            start = frame * frame_size + 24
            sums[i] = page_checksum(pgno, view[start : start + page_size])
        checksums.apply(found.pgnos, sums, found.commit_pages)
        at += found.frame_count
        transactions += found.commits
        pages += len(found.pgnos)
    return transactions, pages


def _measure(path: Path, mix: str, frames: int, rounds: int) -> tuple[list[float], list[float]]:
    """GB/s by the clock on the wall, and by processor time."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA wal_autocheckpoint=0")
    _write(db, mix, frames)
    files = DatabaseFiles(path)
    try:
        header = files.index_header()
        assert header is not None
        buffer = bytearray(capture.BATCH_BYTES // (24 + header.page_size) * (24 + header.page_size))
        size = header.mx_frame * (24 + header.page_size)
        rates: list[float] = []
        cpu_rates: list[float] = []
        for _ in range(rounds + 1):
            begin_s, cpu_s = time.perf_counter(), time.process_time()
            transactions, pages = decode(files, header.page_size, header.mx_frame, buffer)
            rates.append(size / (time.perf_counter() - begin_s) / 1e9)
            cpu_rates.append(size / (time.process_time() - cpu_s) / 1e9)
        say(f"{mix}: {header.mx_frame} frames, {transactions} commits, {pages} kept: {max(rates):.2f} GB/s at best")
        return rates[1:], cpu_rates[1:]
    finally:
        db.close()
        files.close()


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    rounds, frames = (3, 10_000) if run.quick else (ROUNDS, FRAMES)
    names = {"hot": "one row a commit", "random": "10 random rows a commit", "bulk": "bulk load, every page once"}
    measures = []
    for mix, name in names.items():
        with run.stage() as folder:
            rates, cpu_rates = _measure(folder / "app.db", mix, frames, rounds)
            measures.append(Measure(name, "GB/s", rates, at_least=1.0))
            measures.append(Measure("… by processor time", "GB/s", cpu_rates, note="what a quiet core would do"))
    return measures
